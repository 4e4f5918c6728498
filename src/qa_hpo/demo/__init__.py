"""The offline demo: a synthetic corpus in both SQuAD formats and a tiny base checkpoint.

Nothing here needs a hub, and importing this package imports no torch.
"""

import functools
import json
import os
import tempfile
from pathlib import Path

from qa_hpo.demo.corpus import CORPORA, generate, to_squad
from qa_hpo.errors import InputError

__all__ = ["BASE", "write_demo"]

BASE = Path(__file__).parent / "base"
"""The packaged base checkpoint: model, tokenizer and configuration."""

_STUDY_TEMPLATE = Path(__file__).parent / "study.toml.in"


def write_demo(folder: Path) -> list[Path]:
    """Write corpora, base checkpoint and study file into a folder.

    A file that is already there and the same is left alone, so that the call can be repeated. The
    study file names the other files by the path given here: a study file's paths are relative to
    the folder in which qa-hpo is run.

    Args:
        folder: Where to write; it is created with its parents.

    Returns:
        The files of the demo, whether written now or before.

    Raises:
        InputError: A file is there and differs, or the folder cannot be written. In the first case
            nothing has been changed.
    """
    files = _contents(folder)
    try:
        for path, content in files.items():
            if path.exists() and (not path.is_file() or path.read_bytes() != content):
                raise InputError(
                    f"{path} is there already and is not the file that the demo would write; "
                    "move it away or choose another folder"
                )
        for path, content in files.items():
            if not path.exists():
                _write(path, content)
    except OSError as error:
        raise InputError(f"Cannot write the demo to {folder}: {error.strerror or error}") from error
    return list(files)


def _contents(folder: Path) -> dict[Path, bytes]:
    """Return what each file of the demo holds."""
    files = {folder / name: content for name, content in _corpora().items()}
    for source in sorted(p for p in BASE.iterdir() if p.is_file()):
        files[folder / "base" / source.name] = source.read_bytes()
    study = _STUDY_TEMPLATE.read_text(encoding="utf-8").replace("<DIR>", _toml_escape(folder))
    files[folder / "study.toml"] = study.encode()
    return files


@functools.cache
def _corpora() -> dict[str, bytes]:
    """Return the corpora's files by name; they are always the same."""
    articles = generate()
    files = {}
    for spec in CORPORA:
        text = json.dumps(to_squad(spec, articles[spec.name]), ensure_ascii=False)
        files[f"{spec.name}.json"] = f"{text}\n".encode()
    return files


def _toml_escape(folder: Path) -> str:
    """Return a path as it stands within the quotes of a TOML string."""
    name = folder.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The folder name {name!r} is not valid Unicode; choose another"
        ) from error
    # A JSON string is a TOML string, but for the one control character that JSON leaves alone.
    return json.dumps(name, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp makes a private file; the demo's are ordinary ones.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
