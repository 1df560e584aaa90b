"""What was written is what is read, or it is said which file is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigr_repr.system.sums import SUMS, check_sums, sealed, unsealed, write_sums


def test_a_seal_is_of_all_that_a_record_says() -> None:
    record = {"b": (1, 2), "a": {"ä": None}, "c": 0.1}
    text = json.dumps(sealed(record), indent=3)
    assert unsealed(json.loads(text)) == {"b": [1, 2], "a": {"ä": None}, "c": 0.1}
    for place in range(len(text)):
        if text[place].isalnum():
            changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
            try:
                found = unsealed(json.loads(changed))
            except ValueError:
                continue
            assert set(found) - {"b", "a", "c"}  # the seal's own name: a reader refuses a field that it does not know
    assert unsealed({"old": 1}) == {"old": 1}
    with pytest.raises(ValueError, match="remove record_sha256 from it"):
        unsealed({**sealed(record), "c": 0.2})


def test_sums_of_a_folder(tmp_path: Path) -> None:
    check_sums(tmp_path)  # of an older version
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    write_sums(tmp_path)
    check_sums(tmp_path)
    (tmp_path / "deep" / "one").write_text("3")
    with pytest.raises(ValueError, match=r"deep/one is damaged"):
        check_sums(tmp_path)
    (tmp_path / "deep" / "one").unlink()
    with pytest.raises(ValueError, match=r"deep/one is missing"):
        check_sums(tmp_path)
    (tmp_path / SUMS).write_text("[")
    with pytest.raises(ValueError, match=r"sha256.json cannot be used: .*; copy the whole folder again"):
        check_sums(tmp_path)
