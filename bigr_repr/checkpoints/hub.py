"""Downloads and publishes model folders on the Hugging Face hub. Knows nothing of tensors or released files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bigr_repr.checkpoints.catalog import (
    ADAPTER_FILE,
    CONFIG_FILE,
    GENERATOR_FILE,
    HUB_PAGE,
    RELEASE_REPOSITORY,
    TOKENIZER_FILE,
)

CARD_FILE: Final = "README.md"
_MODEL_FILES: Final = (CONFIG_FILE, TOKENIZER_FILE, GENERATOR_FILE)
_FETCHED: Final = ("*.json", "*.safetensors")
_PUBLISHED: Final = (*_MODEL_FILES, CARD_FILE, "adapter/*.json", "adapter/*.safetensors", "adapt.html", "adapt.json")
_LOG_IN: Final = "log in with: hf auth login, or set HF_TOKEN"


class HubName(NamedTuple):
    """A repository on the hub, and a branch, tag or commit of it (None: main)."""

    repository: str
    revision: str | None


class Published(NamedTuple):
    """Where `push` put a model: its page, and the commit that pins it."""

    url: str
    commit: str


def parse_folder_name(name: str) -> HubName | None:
    """Parse "hf:user/name" or "hf:user/name@REVISION"; None for other forms, including the release."""
    text, _, revision = name.removeprefix("hf:").partition("@")
    parts = text.split("/")
    if not name.startswith("hf:") or len(parts) != 2 or not all(parts) or text == RELEASE_REPOSITORY:
        return None
    return HubName(text, revision or None)


def fetch_folder(name: HubName, *, local_files_only: bool = False) -> Path:
    """The files of a model folder, downloaded unless the hub's cache has them.

    Raises ConnectionError, in one line with the remedy, if they are not available.
    """
    import huggingface_hub

    with hub_errors(name):
        folder = huggingface_hub.snapshot_download(
            name.repository, revision=name.revision, allow_patterns=list(_FETCHED), local_files_only=local_files_only
        )
    return Path(folder)


def push(
    folder: Path,
    repository: str,
    *,
    card: str,
    pictures: Mapping[str, bytes] | None = None,
    private: bool = False,
    branch: str | None = None,
    message: str = "Upload model",
) -> Published:
    """Upload a model folder, its card and pictures (name: PNG) to `repository`, "user/name", in one commit.

    The repository is created if necessary. Files uploaded by an interrupted call are not uploaded again.
    Raises ConnectionError in one line, FileNotFoundError or ValueError for a folder or a name that cannot be published.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd

    files = published_files(folder)
    check_repository(repository)
    name, api = HubName(repository, branch), huggingface_hub.HfApi()
    content: dict[str, str | bytes] = {file.relative_to(folder).as_posix(): str(file) for file in files}
    content |= {CARD_FILE: card.encode(), **(pictures or {})}
    operations = [CommitOperationAdd(path, data) for path, data in sorted(content.items())]
    with hub_errors(name):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=message, revision=branch)
    return Published(f"{api.endpoint}/{repository}", done.oid)


def check_repository(repository: str, *, writing: bool = True) -> None:
    """Check what `push` needs, except for the network: ValueError unless it is "user/name", ConnectionError without a
    token, which is needed for writing only."""
    import huggingface_hub

    if parse_folder_name(f"hf:{repository}") is None or "@" in repository:
        raise ValueError(f"repository={repository!r} is not of the form user/name")
    if writing and huggingface_hub.get_token() is None:
        raise ConnectionError(f"{repository} cannot be written without a token; {_LOG_IN}")


def published_files(folder: Path) -> list[Path]:
    """The files of a model folder that `push` uploads. Raises FileNotFoundError for a folder that is not a model."""
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file()]
    if missing:
        hint = f"; it is an adapter: publish the adapted model, its parent folder ({ADAPTER_FILE})"
        is_adapter = (folder / ADAPTER_FILE).is_file()
        raise FileNotFoundError(
            f"{folder} is not a model folder, as it has no {', '.join(missing)}{hint if is_adapter else ''}"
        )
    return sorted({file for pattern in _PUBLISHED for file in folder.glob(pattern)})


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Turn errors of the hub's client into a ConnectionError of one line; its reports on attempts are suppressed."""
    with quiet_hub():
        try:
            yield
        except Exception as error:  # the client raises many kinds, including its transport's
            raise ConnectionError(f"{name.repository}: {_reason(error, name)}") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Suppress the hub client's reports on every attempt; its final error is reported once."""
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


def _reason(error: Exception, name: HubName) -> str:
    """What happened and what to do."""
    import huggingface_hub
    import huggingface_hub.errors as e

    cause = error.__cause__ if isinstance(error.__cause__, e.HfHubHTTPError) else error
    page, status = HUB_PAGE.format(name.repository), getattr(getattr(cause, "response", None), "status_code", None)
    lost = isinstance(cause, e.RepositoryNotFoundError)
    away = type(error).__module__.split(".")[0] in ("httpx", "httpcore") or (isinstance(error, OSError) and not status)
    cases = [
        (isinstance(cause, e.GatedRepoError), f"the model is gated; request access on {page}, then {_LOG_IN}"),
        (isinstance(cause, e.RevisionNotFoundError), f"there is no revision {name.revision!r}; see {page}/commits"),
        (
            status == 401 or (lost and huggingface_hub.get_token() is None),
            f"it does not exist, or is not public: check the name, or {_LOG_IN}",
        ),
        (lost, "it does not exist, or the token may not read it; check name and token"),
        (status == 403, "the token does not permit this; use one with write access to this repository"),
        (
            isinstance(error, e.LocalEntryNotFoundError | e.OfflineModeIsEnabled),
            "no connection, or offline mode, and the files are not in the cache; connect, or pass a folder",
        ),
        (away, f"the hub cannot be reached ({_in_a_line(error)}); try again: uploaded files are kept"),
    ]
    return next((said for is_so, said in cases if is_so), f"{_in_a_line(cause)}; try again: uploaded files are kept")


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
