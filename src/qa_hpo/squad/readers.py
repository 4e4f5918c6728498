"""Readers: each yields the raw questions of one kind of source, one by one.

What makes a whole source unusable (a file that is no JSON, a paragraph without questions) is a
CorpusError with the place; what is wrong with a single question is left to the corpus to judge.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_hpo.errors import CorpusError
from qa_hpo.hub import commit_of
from qa_hpo.legible import first_line
from qa_hpo.squad.hub_data import load_split

__all__ = ["RawQuestion", "describe", "hub_dataset", "is_hub_id", "read_json", "read_source"]

COLUMNS = ("id", "question", "context", "answers", "title", "is_impossible")
REQUIRED_COLUMNS = COLUMNS[:4]
ACCEPTED = (
    "a SQuAD-format .json (or .json.gz), a .jsonl or .parquet file, "
    "a folder written by datasets' save_to_disk, or a hub id"
)
# "name" or "org/name", with an optional ":config".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
# "train.json" is meant as a file; the ".1" of "org/data-v1.1" is not a suffix.
_FILE_SUFFIX = re.compile(r"\.([A-Za-z]+|bz2|7z)$")


@dataclass(frozen=True, slots=True)
class RawQuestion:
    """One question as its source has it, unchecked.

    Attributes:
        place: where it stands in the source, for messages.
        fields: those of id, question, context, answers, title and is_impossible that are there.
    """

    place: str
    fields: Mapping[str, Any]


def describe(value: object) -> str:
    """The JSON word for a value's type, for messages."""
    words = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    if value is None:
        return "null"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return words.get(type(value), type(value).__name__)


def _path(source: str) -> Path:
    return Path(os.path.expanduser(source))  # noqa: PTH111  (pathlib's fails for an unknown user)


def is_hub_id(source: str) -> bool:
    """Whether a source that is no existing path can be meant as a hub id."""
    return bool(_HUB_ID.fullmatch(source)) and not _FILE_SUFFIX.search(source)


def hub_dataset(source: str) -> str | None:
    """The id of the hub's repository that a source means, or None where it means a path."""
    try:
        exists = _path(source).exists()
    except OSError:  # a name too long, a folder that may not be entered
        return None
    return source.partition(":")[0] if is_hub_id(source) and not exists else None


def read_source(source: str, split: str, commit: str | None = None) -> Iterator[RawQuestion]:
    """The questions of a file, a saved dataset or a hub dataset, in their order.

    Raises:
        CorpusError: if the source is not there, cannot be read, or is not laid out as expected.
        WorkError: if the hub fails.
    """
    path = _path(source)
    try:
        # A link to nothing is meant as a file, not as a hub id.
        exists, is_folder = path.exists() or path.is_symlink(), path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise CorpusError(f"{source}: cannot be read: {error.strerror}") from error
    if not exists:
        if not is_hub_id(source):
            raise CorpusError(f"{source}: no such file or folder (current folder: {Path.cwd()})")
        return _read_hub(source, split, commit)
    if is_folder:
        return _read_saved(path, split)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    match kind:
        case ".json" | ".json.gz":
            return _read_squad_json(path)
        case ".jsonl" | ".jsonl.gz":
            return _read_json_lines(path)
        case ".parquet":
            return _read_parquet(path)
        case _:
            raise CorpusError(f"{path}: not a kind of file that is read: expected {ACCEPTED}")


# ---------------------------------------------------------------------------- files


def _read_text(path: Path) -> str:
    try:
        if path.is_char_device() or path.is_block_device():
            raise CorpusError(f"{path}: is a device, not a file")
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = " (one object per line? name it .jsonl)" if error.msg == "Extra data" else ""
        raise CorpusError(
            f"{place}: not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, nesting too deep
        raise CorpusError(f"{place}: not valid JSON: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, which may be gzipped.

    Raises:
        CorpusError: if it cannot be read, or is not UTF-8, or not JSON.
    """
    return _parse_json(_read_text(path), str(path))


def _member(parent: object, key: str, file: Path, place: str) -> Any:
    """parent[key], where parent must be an object that has the key."""
    where = f"{file}: {place}" if place else f"{file}: top level"
    if not isinstance(parent, dict):
        raise CorpusError(
            f'{where}: expected an object with the key "{key}", found {describe(parent)}'
        )
    if key not in parent:
        found = ", ".join(map(str, parent)) or "none"
        raise CorpusError(f'{where}: the key "{key}" is missing (keys found: {found})')
    return parent[key]


def _array(parent: object, key: str, file: Path, place: str) -> list[Any]:
    """parent[key], which must be an array."""
    value = _member(parent, key, file, place)
    if not isinstance(value, list):
        where = f"{place}.{key}" if place else key
        raise CorpusError(f"{file}: {where}: expected an array, found {describe(value)}")
    return value


def _read_squad_json(path: Path) -> Iterator[RawQuestion]:
    """SQuAD 1.1 or 2.0: data -> paragraphs -> qas."""
    content = read_json(path)
    for a, article in enumerate(_array(content, "data", path, "")):
        for p, paragraph in enumerate(_array(article, "paragraphs", path, f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            context = _member(paragraph, "context", path, place)
            for q, qa in enumerate(_array(paragraph, "qas", path, place)):
                if not isinstance(qa, dict):
                    raise CorpusError(
                        f"{path}: {place}.qas[{q}]: expected an object with the keys "
                        f'"id", "question" and "answers", found {describe(qa)}'
                    )
                fields = {**qa, "context": context, "title": article.get("title")}
                yield RawQuestion(f"{place}.qas[{q}]", fields)


def _read_json_lines(path: Path) -> Iterator[RawQuestion]:
    # Split at "\n" alone: JSON strings may hold the other line separators of Unicode as they are.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse_json(line, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise CorpusError(
                f"{path}: line {number}: expected an object with the keys "
                f"{', '.join(REQUIRED_COLUMNS)}, found {describe(row)}"
            )
        yield RawQuestion(f"line {number}", row)


def _read_parquet(path: Path) -> Iterator[RawQuestion]:
    # pyarrow, on which datasets stands, reads it as it is; datasets would first copy it into a
    # cache, and take brackets in the file's name for a pattern.
    import pyarrow  # type: ignore[import-untyped] # noqa: PLC0415
    import pyarrow.parquet  # type: ignore[import-untyped] # noqa: PLC0415

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _known_columns(file.schema_arrow.names, str(path))
            rows = 0
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                batch.validate(full=True)  # offsets that lead out of a column end the process
                for row in batch.to_pylist():
                    yield RawQuestion(f"row {rows}", row)
                    rows += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error


# ---------------------------------------------------------------------------- datasets


def _read_saved(path: Path, split: str) -> Iterator[RawQuestion]:
    """A folder that save_to_disk wrote: a Dataset, or a DatasetDict with the split."""
    # Seconds to import, and needed for this source only.
    from datasets.dataset_dict import DatasetDict  # noqa: PLC0415
    from datasets.load import load_from_disk  # noqa: PLC0415

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise CorpusError(f"{path}: not a folder written by save_to_disk; expected {ACCEPTED}")
    try:
        # Into memory: to read a mapped file behind its end would end the process.
        saved = load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:
        # A file of it that is no good makes the libraries raise anything.
        raise CorpusError(f"{path}: not a readable saved dataset: {first_line(error)}") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise CorpusError(
                f'{path}: has no split "{split}" (found: {", ".join(map(str, saved))})'
            )
        saved = saved[split]
    return _saved_rows(saved, path)


def _saved_rows(saved: Any, path: Path) -> Iterator[RawQuestion]:
    try:
        # Offsets that lead out of their column would end the process as well.
        saved.data.validate(full=True)
        yield from _rows(saved, str(path))
    except CorpusError:
        raise
    except Exception as error:  # as above: its rows are read from the disk now
        raise CorpusError(f"{path}: not a readable saved dataset: {first_line(error)}") from error


def _read_hub(source: str, split: str, commit: str | None) -> Iterator[RawQuestion]:
    commit = commit or commit_of("dataset", source.partition(":")[0])
    return _rows(load_split(source, split, commit), source)


def _rows(dataset: Any, source: str) -> Iterator[RawQuestion]:
    columns = _known_columns(dataset.column_names, source)
    plain = dataset.with_format(None).select_columns(columns)
    for start, batch in enumerate(plain.iter(batch_size=1000)):
        for i, row in enumerate(zip(*(batch[name] for name in columns), strict=True)):
            place = f"row {1000 * start + i}"
            yield RawQuestion(place, dict(zip(columns, row, strict=True)))


def _known_columns(found: list[str], source: str) -> list[str]:
    missing = [name for name in REQUIRED_COLUMNS if name not in found]
    if missing:
        raise CorpusError(
            f"{source}: the columns {', '.join(missing)} are missing (found: {', '.join(found)}); "
            'expected id, question, context and answers {"text": [...], "answer_start": [...]}'
        )
    return [name for name in COLUMNS if name in found]
