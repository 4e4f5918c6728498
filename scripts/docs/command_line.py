"""The reference of the command line, from the commands themselves."""

import html
import re

from typer import Context
from typer.cli import get_docs_for_click
from typer.core import MARKUP_MODE_KEY
from typer.main import get_command

from qa_hpo.cli import app

# As Typer writes an example of a command's help.
_EXAMPLE = re.compile(r"^<span style=\"font-weight: bold\">Example:</span> (.+)$", re.MULTILINE)


def commands() -> str:
    """Return Markdown about all commands, a section each."""
    command = get_command(app)
    context = Context(command, info_name="qa-hpo", obj={MARKUP_MODE_KEY: "rich"})
    text = get_docs_for_click(obj=command, ctx=context, name="qa-hpo")
    # The page has a title of its own, and its contents are a list of the commands.
    usage, _, commands = text.partition("**Commands**")
    body = usage[usage.index("**Usage**") :] + commands[commands.index("\n## ") :]
    return _EXAMPLE.sub(lambda found: f"**Example**: `{html.unescape(found.group(1))}`", body)
