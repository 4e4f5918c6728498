"""What is done with the code blocks of the documentation: each language's test of a block."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from cli_helpers import Ended, run_cli
from qa_hpo.config import StudyFile

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What the fragments of a page are parts of: they are merged into it, one after the other.
WHOLE: dict[str, Any] = {
    "study": {"name": "docs"},
    "data": {"train": "train.json", "validation": "validation.json"},
    "starts": {"base": "base", "v1": {"from": "base", "train": "squad.json"}},
    "search": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-4},
        "epochs": {"value": 3},
        "weight_decay": {"low": 0.0, "high": 0.1},
        "doc_stride": {"choices": [64, 128]},
    },
    "budget": {"trials": 20},
}

# Those that start workers, or stay, are processes as for a reader.
_IN_THIS_PROCESS = {
    *("answer", "check", "compare", "evaluate", "export", "init", "leaderboard", "prepare"),
    *("report", "score", "status", "train"),
}
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def run_shell(example: Example) -> None:
    """Run a block of commands as a reader does; what they print is kept for the next block."""
    source = str(example.parsed)
    lines = [shlex.split(line) for line in source.splitlines()]
    # Most commands spare the seconds of importing torch again.
    here = all(line[0] == "qa-hpo" and line[1] in _IN_THIS_PROCESS for line in lines)
    printed = ""
    for arguments in [line[1:] for line in lines] if here else [None]:
        ended = run_cli(*arguments) if arguments else in_shell(source)
        assert ended.code == 0, f"{source}{printed}{ended.out}{ended.err}"
        assert "error" not in ended.err, ended.err
        printed += ended.out
    example.namespace["printed"] = printed


def in_shell(source: str) -> Ended:
    """Run commands in a shell."""
    ended = subprocess.run(["sh", "-eu", "-c", source], capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def merge_toml(example: Example) -> None:
    """Merge a fragment into the page's study file, which must be valid then."""
    whole = example.namespace.setdefault("whole", json.loads(json.dumps(WHOLE)))
    for section, given in tomllib.loads(str(example.parsed)).items():
        if isinstance(given, dict):
            whole.setdefault(section, {}).update(given)
        else:
            whole[section] = given
    StudyFile.from_dict(whole)


def compare_json(example: Example) -> None:
    """Compare the shape of a JSON block with what the commands before it printed last."""
    printed = example.namespace.pop("printed")
    real = json.loads(printed[re.search(r"^\{", printed, re.MULTILINE).start() :])
    assert_alike(json.loads(str(example.parsed)), real, "")


def assert_alike(shown: Any, real: Any, place: str) -> None:
    """Compare keys and types; null is like anything, and of lists the first elements count."""
    if shown is None or real is None:
        return
    if isinstance(shown, dict):
        assert isinstance(real, dict), place
        assert list(shown) == list(real), place
        for key, value in shown.items():
            assert_alike(value, real[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert isinstance(real, list), place
        for index, (one, other) in enumerate(zip(shown, real, strict=False)):
            assert_alike(one, other, f"{place}[{index}]")
    else:
        numbers = (int, float)
        kinds = [numbers if isinstance(each, numbers) else type(each) for each in (shown, real)]
        assert kinds[0] == kinds[1], f"{place}: {shown!r} is shown and is {real!r}"


def compare_text(example: Example) -> None:
    """Compare lines with what was printed before: all but numbers and the first cell."""
    printed = [skeleton(line) for line in example.namespace.pop("printed").splitlines()]
    for line in str(example.parsed).splitlines():
        assert skeleton(line) in printed, f"{line!r} is not like anything of {printed}"


def skeleton(line: str) -> list[str]:
    """Return the cells of a line, which stand two spaces apart, without first one and numbers."""
    return [_NUMBER.sub("N", cell) for cell in re.split(r" {2,}", line.strip())[1:]]


LANGUAGES = {"sh": run_shell, "toml": merge_toml, "json": compare_json, "text": compare_text}

SYBIL = Sybil(
    parsers=[
        SkipParser(),
        PythonCodeBlockParser(),
        *(CodeBlockParser(language, evaluate) for language, evaluate in LANGUAGES.items()),
    ],
    pattern="*.md",
)


def blocks(page: Path) -> Document:
    """Return a page's blocks, in their order, and the marks of those that are not run."""
    return SYBIL.parse(page)


def code_tokens(page: Path) -> list[tuple[int, str]]:
    """Return the line and the language of each code block, as a Markdown parser finds them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    kinds = {"fence", "code_block"}
    return [(token.map[0] + 1, token.info) for token in tokens if token.type in kinds and token.map]
