"""The documentation as a site: it builds without a warning, and its reference lacks nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import qa_hpo
from qa_hpo.cli import app
from qa_hpo.config import StudyFile
from qa_hpo.parameters import PARAMETER_NAMES

ROOT = Path(__file__).resolve().parents[2]
EMPTY = {"", "–", "-"}


class Page(HTMLParser):
    """A page's tables by the id of the heading before them, its ids, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self._heading = ""
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag in {"h1", "h2", "h3"}:
            self._heading = given.get("id", "")
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append([])
        elif tag in {"td", "th"}:
            self._cell = []
        if tag in {"script", "img", "iframe"} and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in {"stylesheet", "preconnect", "icon"}:
            self.loaded.append(given["href"])

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"} and self._cell is not None:
            self.tables[self._heading][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does; a link or an anchor that leads nowhere is a warning."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    return folder


def page(site: Path, name: str) -> Page:
    return Page((site / name).read_text(encoding="utf-8"))


def tables_of_the_schema() -> Iterator[tuple[str, set[str]]]:
    """The sections of a study file and their keys, as pydantic's own schema has them."""
    schema = StudyFile.model_json_schema(by_alias=True)

    def keys(model: str) -> set[str]:
        return set(schema["$defs"][model]["properties"])

    for section, value in schema["properties"].items():
        reference: Any = value.get("$ref") or (value.get("allOf") or [{}])[0].get("$ref")
        if reference is not None:
            yield section, keys(reference.rpartition("/")[2])
    yield "recipe", keys("Recipe")
    yield "dimension", keys("Dimension")
    yield "retention", keys("Retention")
    yield "parameters", set(PARAMETER_NAMES)
    yield "run", {"name", "seed", "stop_after_epochs", "evaluations_per_epoch"}


SECTIONS = dict(tables_of_the_schema())


def test_the_schema_has_the_sections_that_are_compared():
    sections = set(StudyFile.model_fields) - {"starts", "search", "baseline"}
    assert sections <= set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_study_file_is_there_with_its_meaning(site: Path, section: str):
    heading, *rows = page(site, "reference/study-file.html").tables[section]
    assert heading == ["key", "type", "default", "meaning"]
    assert {key for key, *_ in rows} == SECTIONS[section]
    for key, kind, default, meaning in rows:
        assert kind not in EMPTY, key
        assert default != "", key
        assert len(meaning.split()) >= 2, key


def test_defaults_and_limits_are_those_of_the_models(site: Path):
    rows = page(site, "reference/study-file.html").tables
    data = {key: cells for key, *cells in rows["data"]}
    assert data["train"][:2] == ["text", "required"]
    assert data["max_length"][:2] == ["whole number from 16 to 8192", "384"]
    assert data["test"][1] == "–"
    pruning = {key: cells for key, *cells in rows["pruning"]}
    default = StudyFile.model_fields["pruning"].default
    assert pruning["across"][1] == f'"{default.across}"'
    assert pruning["control_fraction"][0] == "number from 0 to 1"
    assert {key: cells for key, *cells in rows["recipe"]}["epochs"][1] == "as in [training]"


def test_every_section_that_has_no_table_is_there(site: Path):
    assert {"starts", "search", "baseline"} <= page(site, "reference/study-file.html").ids


def test_every_command_is_there_with_its_options_and_an_example(site: Path):
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():
        section = text.partition(f'id="qa-hpo-{name}"')[2].partition("<h2")[0]
        assert f"<code>qa-hpo {name} " in section, f"{name} has no example"
        for option in (opt for param in command.params for opt in param.opts if opt[:2] == "--"):
            assert option in section, f"{name} {option}"


def test_everything_that_the_package_offers_is_there(site: Path):
    ids = page(site, "reference/python.html").ids
    for name in set(qa_hpo.__all__) - {"__version__"}:
        offered = getattr(qa_hpo, name)
        assert f"{offered.__module__}.{offered.__qualname__}" in ids


def test_nothing_is_loaded_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for built in pages:
        loaded = Page(built.read_text(encoding="utf-8")).loaded
        assert loaded
        assert [source for source in loaded if re.match(r"(https?:)?//", source)] == [], built
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8"))


def test_messages_that_troubleshooting_shows_are_the_programs():
    """Each message in a heading, cut where it differs from case to case."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert len(messages) > 10
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("src/**/*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # literals that go on in the next line
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in code, part
