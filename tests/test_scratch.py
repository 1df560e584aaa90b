"""Laws of temporary folders: private, gone at the end, and gone at the next call if a process was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bigr_repr.system.scratch import scratch_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path) -> Path:
    os.utime(folder, (1, 1))
    return folder


def test_a_folder_is_private_and_goes_at_the_end(place: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == place
        assert not folder.stat().st_mode & 0o077
        (folder / "file").write_bytes(b"x")
    with pytest.raises(KeyError), scratch_folder() as folder:
        raise KeyError
    assert not list(place.iterdir())


def test_what_a_killed_process_left_goes_at_the_next_call(place: Path) -> None:
    program = "import os; from bigr_repr.system.scratch import scratch_folder\nwith scratch_folder(): os._exit(9)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(place)}, check=False)
    (left,) = place.iterdir()
    with scratch_folder():
        assert left.exists()  # young: perhaps another process is just about to hold it
    aged(left)
    with scratch_folder():
        assert not left.exists()


def test_what_is_in_use_or_no_folder_of_ours_stays(place: Path) -> None:
    other, elsewhere = place / "other", place / "elsewhere"
    other.mkdir()
    elsewhere.mkdir()
    link = place / "bigr-repr-link"
    link.symlink_to(elsewhere)
    for each in (other, elsewhere):
        aged(each)
    with scratch_folder() as held:
        aged(held)
        with scratch_folder():
            assert held.exists()
    assert {path.name for path in place.iterdir()} == {"other", "elsewhere", "bigr-repr-link"}
