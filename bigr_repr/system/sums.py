"""SHA-256 checksums, next to or inside what was written, to detect damage. Knows nothing of what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bigr_repr.system.files import replacing, sha256_of
from bigr_repr.system.records import reading_record

SUMS: Final = "sha256.json"
_SEAL: Final = "record_sha256"


def write_sums(folder: Path) -> None:
    """Write sha256.json into a folder, with the checksum of each of its files, at any depth."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    with replacing(folder / SUMS) as file:
        file.write(json.dumps(sums, indent=1).encode())


def check_sums(folder: Path) -> None:
    """Raises ValueError if a file has changed since it was written; folders of older versions have no checksums."""
    if not (folder / SUMS).exists():
        return
    for name, digest in read_sums(folder).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, but listed in {SUMS}")
        if sha256_of(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is not the one in {SUMS}")


def read_sums(folder: Path) -> dict[str, str]:
    """The checksums of a folder's files, by their names. Raises ValueError if they are damaged."""
    with reading_record(folder / SUMS, remedy="copy the whole folder again") as record:
        return {str(name): str(digest) for name, digest in record.items()}


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for JSON, with a digest of its content."""
    return {**record, _SEAL: _digest(record)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the digest.  Raises ValueError unless it matches; records of older versions have none."""
    rest = without_seal(record)
    if _SEAL in record and record[_SEAL] != _digest(rest):
        raise ValueError(f"it has changed since it was written; if you changed it yourself, remove {_SEAL} from it")
    return rest


@contextmanager
def reading_sealed(path: Path, *, remedy: str) -> Iterator[dict[str, Any]]:
    """`reading_record` for a sealed one, without its seal, which is checked last: other errors say more."""
    with reading_record(path, remedy=remedy) as record:
        yield without_seal(record)
        unsealed(record)


def without_seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the check."""
    return {name: value for name, value in record.items() if name != _SEAL}


def _digest(record: Mapping[str, Any]) -> str:
    # A round trip through JSON gives what a reader sees: tuples become lists, and keys strings.
    plain = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()
