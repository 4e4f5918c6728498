"""MkDocs hook: the parts of the reference that are made from the code when the site is built.

A page says where such a part goes by a comment, ``<!-- made from the code: NAME -->``.
"""

import re

from command_line import commands
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from study_file import run_sections, study_sections

_PARTS = {"commands": commands, "run": run_sections, "study file": study_sections}
_MARK = re.compile(r"^<!-- made from the code: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made from the code where a page asks for it."""

    def part(mark: re.Match[str]) -> str:
        if (name := mark.group(1)) not in _PARTS:
            raise PluginError(f"{page.file.src_uri}: no part is called {name!r}: {list(_PARTS)}")
        return _PARTS[name]()

    return _MARK.sub(part, markdown)
