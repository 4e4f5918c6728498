"""RESULTS.md for people and results.json for programs: each benchmark updates its own part."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qa_hpo.paths import read_json, write_json, write_text

RESULTS_MD = "RESULTS.md"
RESULTS_JSON = "results.json"
PREFACE = """# Benchmarks

Run by hand: `make bench`, or `python -m bench --help`. Each run writes its own section anew, and
its own key of `results.json`.
"""


@dataclass(frozen=True)
class Finding:
    """What a benchmark found.

    Attributes:
        fields: for programs, the value of its key.
        body: for people, Markdown that begins with a heading of the second level.
    """

    fields: dict[str, Any]
    body: str


def write_finding(folder: Path, key: str, finding: Finding) -> None:
    """Update one section of RESULTS.md and one key of results.json, and nothing else there.

    Raises:
        ValueError: if either file is not as it was written; then neither is changed.
    """
    page, data = folder / RESULTS_MD, folder / RESULTS_JSON
    text = page.read_text(encoding="utf-8") if page.exists() else PREFACE
    values = read_json(data) if data.exists() else {}
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004  (the file is wrong, not the caller)
            f"{data.name}: expected an object with a key for each benchmark"
        )
    text = with_section(text, key, finding.body)
    write_json(data, {**values, key: finding.fields})
    write_text(page, text)


def with_section(text: str, key: str, body: str) -> str:
    """The page with one section replaced, or added at its end.

    Raises:
        ValueError: if the section's markers are not there once each, in their order.
    """
    begin, end = f"<!-- begin {key} -->", f"<!-- end {key} -->"
    section = f"{begin}\n{body.strip()}\n\n{end}"
    counts = text.count(begin), text.count(end)
    if counts == (0, 0):
        return f"{text.rstrip()}\n\n{section}\n"
    if counts != (1, 1) or text.index(begin) > text.index(end):
        raise ValueError(
            f"{RESULTS_MD}: expected {begin!r} and after it {end!r}, once each; mend the "
            "markers, or remove them to have the section added at the end"
        )
    return text[: text.index(begin)] + section + text[text.index(end) + len(end) :]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well as plain text: first column left, the others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return f"| {' | '.join([first, *map(str.rjust, cells[1:], widths[1:])])} |"

    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join([row(lines[0]), row(rule), *map(row, lines[1:])])


def machine(packages: Sequence[str]) -> str:
    """Processor, system and versions, in two lines; no name of the machine."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"- Machine: {_processor()}, {os.cpu_count()} logical cores, "
        f"{platform.system()} {platform.machine()}\n"
        f"- Versions: Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
