"""Records on disk: what is no record is said, with its file and what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bigr_repr.config import from_fields
from bigr_repr.system.records import read_record, reading_record

DAMAGED = {
    b"": r"it is not JSON \(Expecting value",
    b"{": r"it is not JSON \(",
    b"\xff\xfe\x00": r"it is not JSON \(",
    b"[1]": "it holds a list where an object is expected",
    b"null": "it holds a NoneType where an object is expected",
    b"[" * 100_000: "it is nested too deep",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    side: int
    mean: tuple[float, ...] = ()


def test_a_record_is_an_object(tmp_path: Path) -> None:
    (file := tmp_path / "r.json").write_text('{"a": [1]}')
    assert read_record(file, remedy="again") == {"a": [1]}
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "other.json", remedy="again")


@pytest.mark.parametrize("data", DAMAGED)
def test_what_is_no_record_is_said_with_its_file_and_the_remedy(tmp_path: Path, data: bytes) -> None:
    (file := tmp_path / "r.json").write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{file} cannot be used: {DAMAGED[data]}.*; write it again$"):
        read_record(file, remedy="write it again")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "entry lacks the fields \\['side'\\]"),
        ('{"side": 1, "width": 2}', r"entry has unknown fields \['width'\]"),
        ('{"side": 1, "mean": 2}', "TypeError: .*"),
        ('{"side": 1, "mean": []}', "it has no field 'other'"),
    ],
)
def test_fields_of_a_wrong_form_are_said_likewise(tmp_path: Path, text: str, said: str) -> None:
    (file := tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^{file} cannot be used: {said}.*; write it again$"):
        _other(file)


def _other(file: Path) -> object:
    with reading_record(file, remedy="write it again") as record:
        assert len(from_fields(Entry, record, "entry").mean) == 0
        return record["other"]


def test_a_configuration_is_an_object_too() -> None:
    with pytest.raises(ValueError, match="entry is a list where an object is expected"):
        from_fields(Entry, [1], "entry")  # type: ignore[arg-type]
    assert from_fields(Entry, {"side": 1, "mean": [2.0]}, "entry") == Entry(side=1, mean=(2.0,))
