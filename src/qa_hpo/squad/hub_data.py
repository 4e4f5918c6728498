"""Data sets of the hub: a split of one configuration at one commit, which datasets prepares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qa_hpo.errors import CorpusError, WorkError
from qa_hpo.hub import check_access, persistently, telling
from qa_hpo.legible import first_line

__all__ = ["load_split"]


def load_split(source: str, split: str, commit: str) -> Any:
    """Return a split of a hub data set as a datasets.Dataset.

    What datasets prepared of this commit before is used, and the hub is asked nothing.

    Args:
        source: The repository's id, with an optional ":config"; else its default configuration.
        split: The split.
        commit: Of the repository.

    Raises:
        CorpusError: There is no such configuration or split, or it cannot be had.
        WorkError: The hub fails.
    """
    # Seconds to import, and needed for this source only.
    from datasets.exceptions import DatasetsError  # noqa: PLC0415
    from datasets.utils import logging as datasets_logging  # noqa: PLC0415
    from datasets.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    if not sys.stderr.isatty():
        disable_progress_bars()
    # It tells what it found in its cache; we tell what could not be found.
    datasets_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    name, _, config = source.partition(":")
    try:
        wanted = config or _default_configuration(name, commit)
        if wanted is None:
            check_access("dataset", name, commit)  # which fetches the card
            wanted = _default_configuration(name, commit) or "default"
        folder = _prepared_folder(name, wanted, commit)
        loaded = None if folder is None else _read_prepared(folder, name, split)
        if loaded is not None:
            return loaded
        check_access("dataset", name, commit)  # load_dataset hides why there is none
        with telling("dataset", source):
            loaded = _load(source, split, commit, damaged=folder)
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise CorpusError(
            f'{source}: the split "{split}" cannot be loaded from the hub: {first_line(error)}'
        ) from error
    places = [Path(entry["filename"]).parts for entry in loaded.cache_files]
    if any(place[-4] != wanted or place[-2] != commit for place in places):
        # What datasets falls back to where the hub fails.
        raise WorkError(
            f"{source}: the hub failed, and the copy in the cache is not of the configuration "
            f"{wanted} at commit {commit}; try again later"
        )
    return loaded


def _default_configuration(name: str, commit: str) -> str | None:
    """Return the configuration that is meant where none is named; None if the card is not cached.

    Raises:
        CorpusError: The data set has several, and none is the default.
    """
    from datasets.utils.metadata import MetadataConfigs  # noqa: PLC0415
    from huggingface_hub import DatasetCard, try_to_load_from_cache  # noqa: PLC0415

    def cached(file: str) -> Any:  # a path, None, or a mark that there is no such file
        return try_to_load_from_cache(name, file, revision=commit, repo_type="dataset")

    card, settings = cached("README.md"), cached(".huggingface.yaml")
    if card is None:
        return None
    texts = [Path(card).read_text(encoding="utf-8")] if isinstance(card, str) else []
    if isinstance(settings, str):  # which come before the card, and are written as its head is
        texts.insert(0, f"---\n{Path(settings).read_text(encoding='utf-8')}\n---\n")
    heads: list[Any] = [DatasetCard(text).data for text in texts]
    found = map(MetadataConfigs.from_dataset_card_data, heads)
    known = next(filter(None, found), None)
    if known is None:
        return "default"
    default = known.get_default_config_name()
    if default is None:
        raise CorpusError(
            f"{name}: has several configurations and none by default; give one of "
            f"{', '.join(f'{name}:{config}' for config in known)}"
        )
    return str(default)


def _cached(name: str, config: str, version: str, commit: str) -> Any:
    """Return datasets' builder for what is in its cache already."""
    from datasets.packaged_modules.cache.cache import Cache  # noqa: PLC0415

    return Cache(
        dataset_name=name.rpartition("/")[2],
        repo_id=name,
        config_name=config,
        version=version,
        hash=commit,
    )


def _prepared_folder(name: str, config: str, commit: str) -> Path | None:
    """Return where datasets keeps a configuration that it prepared before; else None."""
    known = Path(_cached(name, config, "0.0.0", commit).cache_dir).parents[1]
    found = [path for path in known.glob(f"*/{commit}") if path.is_dir()]
    return found[0] if found else None


def _read_prepared(folder: Path, name: str, split: str) -> Any | None:
    """Return a split of what is in such a folder; None if files of it are gone or damaged."""
    import pyarrow  # type: ignore[import-untyped] # noqa: PLC0415

    if not (folder / "dataset_info.json").is_file():
        return None
    try:
        return _cached(name, *folder.parts[-3:]).as_dataset(split=split)
    except (OSError, pyarrow.ArrowException):
        return None


def _load(source: str, split: str, commit: str, *, damaged: Path | None) -> Any:
    """Return a split of what the hub has, or, where it fails, of what datasets finds in its cache.

    Args:
        source: As above.
        split: As above.
        commit: As above.
        damaged: The folder that what was prepared before is in, if it cannot be read.

    Raises:
        CorpusError: It has a loading script, or it cannot be prepared again.
    """
    from datasets.download.download_manager import DownloadMode  # noqa: PLC0415
    from datasets.load import load_dataset  # noqa: PLC0415
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415

    if constants.HF_HUB_OFFLINE and damaged is None:
        raise OfflineModeIsEnabled
    name, _, config = source.partition(":")
    # By default datasets takes no notice of files that are gone.
    mode = "REUSE_DATASET_IF_EXISTS" if damaged is None else "REUSE_CACHE_IF_EXISTS"

    def load() -> Any:
        return load_dataset(
            name, config or None, split=split, revision=commit, download_mode=DownloadMode[mode]
        )

    try:
        return persistently(load)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise CorpusError(
            f"{source}: is a data set with a loading script, which is never run; give one "
            "that has its data as Parquet or JSON files, or save it with save_to_disk and "
            "give the folder"
        ) from None
    except (FileNotFoundError, ValueError):
        if damaged is None:
            raise
        # Of the copy that datasets fell back to.
        raise CorpusError(
            f"{source}: its copy in the cache is damaged ({damaged}), and could not be prepared "
            "again from the hub: run 'qa-hpo prepare STUDY' where there is a network and copy "
            "HF_HOME from there"
        ) from None
