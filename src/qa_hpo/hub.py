"""What comes from the Hugging Face Hub: one commit of a repository, and of its files what is read.

Whoever loads from the hub asks here first, so that all files of a repository are of one commit, a
commit that is in the cache (``HF_HOME``) is used without a request, and what can go wrong is told
in one line, with what to do about it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from qa_hpo.errors import (
    CheckpointError,
    CorpusError,
    DiskFullError,
    InputError,
    WorkError,
    is_disk_full,
)

__all__ = [
    "HubKind",
    "check_access",
    "check_no_adapter",
    "commit_of",
    "persistently",
    "snapshot",
    "telling",
]

HubKind = Literal["model", "dataset"]

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

_WORDS = {"model": "model", "dataset": "data set"}
_ERRORS: dict[HubKind, type[InputError]] = {"model": CheckpointError, "dataset": CorpusError}
_PLACES = {"model": "a folder", "dataset": "a file or a folder"}
# The file that every repository of a kind should have.
_ANCHORS: dict[HubKind, str] = {"model": "config.json", "dataset": "README.md"}
_WEIGHTS = "model.safetensors"
_ADAPTER = "adapter_config.json"
_SHARDS = "model-*-of-*.safetensors"
# The configuration, the tokenizer's files, and what an export of ours has beside them. No code, no
# pickled weights, and nothing in subfolders, which hold the same model for other programs.
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.toml")
# The client tries again by itself where it asks for a file or lists a repository, but not where it
# gets a file, or asks for the commit.
_WAITS_S = (1.0, 4.0)
_TIMEOUT_S = 10.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})


def commit_of(kind: HubKind, name: str) -> str:
    """Return the commit that a repository's main branch is at.

    Where the hub cannot be reached, or fails, it is the newest one in the cache.

    Raises:
        InputError: There is no such repository, or it may not be read, or the hub cannot be
            reached and the cache has nothing of it.
        WorkError: The hub fails.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import RevisionResolutionError  # noqa: PLC0415

    api = HfApi()

    def ask() -> str:
        try:
            api.repo_info(name, repo_type=kind, timeout=_TIMEOUT_S)
        except Exception as error:
            if _absent(kind, _cause(error)) is None and not _passes(error):
                raise
            try:
                return api.resolve_revision(name, repo_type=kind, local_files_only=True).resolved
            except RevisionResolutionError:
                raise error from error.__cause__
        # The same again, but this is what leaves the commit in the cache. It has no timeout.
        return api.resolve_revision(name, repo_type=kind).resolved

    with telling(kind, name):
        return persistently(ask)


def check_access(kind: HubKind, name: str, commit: str) -> None:
    """Check that a commit's files can be had; nothing is asked of the hub if they are in the cache.

    Raises:
        InputError: They cannot.
        WorkError: The hub fails.
    """
    from huggingface_hub import (  # noqa: PLC0415
        HfApi,
        hf_hub_download,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: PLC0415

    anchor = _ANCHORS[kind]
    if isinstance(try_to_load_from_cache(name, anchor, revision=commit, repo_type=kind), str):
        return
    with telling(kind, name):
        persistently(
            lambda: HfApi().repo_info(name, repo_type=kind, revision=commit, timeout=_TIMEOUT_S)
        )
        # What a repository is may be read by everybody, where its files may not.
        with contextlib.suppress(RemoteEntryNotFoundError):
            persistently(lambda: hf_hub_download(name, anchor, repo_type=kind, revision=commit))


def snapshot(name: str, commit: str) -> Path:
    """Return the folder with a model's configuration, tokenizer and safetensors at a commit.

    Raises:
        CheckpointError: It cannot be had, or it has no safetensors, or an adapter.
        WorkError: The hub fails.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    def fetch(weights: str) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=commit,
                allow_patterns=[*_BESIDE_WEIGHTS, weights],
                ignore_patterns=["*/*"],
            )
        )

    check_access("model", name, commit)
    with telling("model", name):
        folder = persistently(lambda: fetch(_WEIGHTS))
        if not (folder / _WEIGHTS).exists():
            folder = persistently(lambda: fetch(_SHARDS))
    check_no_adapter(folder, name)
    if not any(folder.glob("model*.safetensors")):
        raise CheckpointError(
            f"{name}: has no safetensors ({_WEIGHTS}) on the hub, and weights of no other kind are "
            "loaded; choose a model that has, or convert it and give the folder"
        )
    return folder


def check_no_adapter(folder: Path, name: str) -> None:
    """Check that a model's folder holds no adapter, which transformers would attach to the model.

    All but the adapter would be frozen then, and left out when the model is saved.

    Raises:
        CheckpointError: It holds one.
    """
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"{name}: holds a PEFT adapter ({_ADAPTER}); merge it into its model and give the "
            "merged one"
        )


def persistently(fetch: Callable[[], _T]) -> _T:
    """Return what ``fetch`` returns, after up to two more attempts where the hub fails in passing.

    What was downloaded by an attempt is there for the next one.
    """
    for wait in _WAITS_S:
        try:
            return fetch()
        except Exception as error:
            if not _passes(error):
                raise
            _logger.info("the hub failed (%s); again in %g s", type(error).__name__, wait)
        time.sleep(wait)
    return fetch()


@contextlib.contextmanager
def telling(kind: HubKind, name: str) -> Iterator[None]:
    """Tell in one line what the hub's client raises in the block, and what to do about it.

    Raises:
        InputError: What was asked for is not there for this user, or not without network.
        DiskFullError: No space is left for it.
        WorkError: The hub fails, or its client.
    """
    from huggingface_hub import constants, errors  # noqa: PLC0415

    # The client's errors of answers and of missing files are OSErrors too.
    known: tuple[type[Exception], ...] = (
        *(OSError, errors.HFValidationError, errors.RevisionResolutionError),
        *_broken(),
        *_unsendable(),
    )
    try:
        yield
    except Exception as error:
        if _of_a_full_disk(error):
            raise DiskFullError(
                f"{name}: no space left on the device for what comes from the hub "
                f"({constants.HF_HOME}); make room, or set HF_HOME to another folder"
            ) from None
        cause = _cause(error)
        if isinstance(error, (ImportError, RuntimeError)):
            # Of a proxy that it lacks a package for, or of the library that gets large files.
            raise WorkError(f"{name}: the hub's client failed: {_one_line(cause)}") from None
        if not isinstance(error, known):
            raise
        if _status(cause) in _PASSING:
            raise WorkError(
                f"{name}: the hub failed again and again (its answer was {_status(cause)}); try "
                "again later"
            ) from None
        why = _refused(kind, name, cause) or _absent(kind, cause) or _one_line(cause)
        raise _ERRORS[kind](f"{name}: {why}") from None


def _of_a_full_disk(error: BaseException) -> bool:
    """Return whether an error has come of one."""
    link: BaseException | None = error
    while link is not None:
        # datasets looks before it writes.
        if is_disk_full(link) or str(link).startswith("Not enough disk space"):
            return True
        link = link.__cause__
    return False


def _refused(kind: HubKind, name: str, cause: BaseException) -> str | None:
    """Return what to do where the hub has an answer and the answer is no; else None."""
    from huggingface_hub import constants, errors, get_token  # noqa: PLC0415

    what, hub = _WORDS[kind], constants.ENDPOINT
    known = get_token() is not None
    login = "set HF_TOKEN or run 'hf auth login'"
    if isinstance(cause, errors.GatedRepoError):
        page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return (
            f"the {what} is gated, and your token's account has not been granted access: ask for "
            f"it at {page}, or {login} with another account's"
            if known
            else f"the {what} is gated: ask for access at {page}, then {login}"
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        private = "your token may not read it" if known else "you are not logged in"
        return (
            f"{hub} has no such {what}, or it is private and {private}: check the spelling, "
            f"{login}, or give {_PLACES[kind]}"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return (
            f"{hub} has the {what}, but not its revision {_revision(cause)}: copy HF_HOME from a "
            "host that has it, or begin a new study, which takes the newest"
        )
    if isinstance(cause, errors.HFValidationError):
        return f"is no hub id: {_one_line(cause)}"
    reasons = {
        401: f"{hub} does not accept your token: {login} with a valid one",
        403: f"your token has no right to read this {what}: {login} with one that has",
    }
    if isinstance(cause, UnicodeEncodeError):  # of the request's headers
        return f"your token has a character that no token has: {login} with a valid one"
    return reasons.get(_status(cause) or 0)


def _absent(kind: HubKind, cause: BaseException) -> str | None:
    """Return what to do where the hub cannot be asked and the cache has nothing; else None."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    if isinstance(cause, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    elif isinstance(cause, (*_broken(), ConnectionError, errors.LocalEntryNotFoundError)):
        why = f"{constants.ENDPOINT} cannot be reached ({type(cause).__name__})"
    else:
        return None
    return (
        f"the {_WORDS[kind]} is not in the cache ({constants.HF_HOME}), and {why}: run 'qa-hpo "
        "prepare STUDY' where there is a network and copy HF_HOME from there, or give "
        f"{_PLACES[kind]}"
    )


def _cause(error: BaseException) -> BaseException:
    """Return what tells most in the chain of errors of which ``error`` has come."""
    from huggingface_hub import errors  # noqa: PLC0415

    telling_types = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, *_broken())
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, telling_types):
            return link
        link = link.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _passes(error: Exception) -> bool:
    """Return whether the same request may succeed soon: the hub fails, or a connection broke."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # noqa: PLC0415

    cause = _cause(error)
    refused = isinstance(cause, httpx.ConnectError)
    return _status(cause) in _PASSING or (isinstance(cause, _broken()) and not refused)


def _broken() -> tuple[type[Exception], ...]:
    """Return the types of errors of a connection that broke or was never made."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # noqa: PLC0415

    return (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


def _unsendable() -> tuple[type[Exception], ...]:
    """Return the types of errors of requests that were wrong before they were sent."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # noqa: PLC0415

    return (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError)


def _revision(error: BaseException) -> str:
    """Return the revision in the address that the hub did not find."""
    asked = str(error.response.url).split("/")  # type: ignore[attr-defined]
    places = [n for n, part in enumerate(asked) if part in {"resolve", "tree", "revision"}]
    return asked[places[-1] + 1].partition("?")[0] if places else "main"


def _one_line(error: BaseException) -> str:
    """Return the beginning of a message, without the token that it may quote."""
    from huggingface_hub import get_token  # noqa: PLC0415

    text = " ".join(str(error).split()) or type(error).__name__
    for secret in (get_token(), os.environ.get("HF_TOKEN")):
        for form in {secret, repr(secret)[1:-1]} if secret else ():
            text = text.replace(form, "***")
    return text if len(text) <= 300 else f"{text[:300]}…"
