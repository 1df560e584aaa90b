"""Laws of files on the disk: what is synced, and that a lock has one holder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from bigr_repr.system import files


def test_a_tree_is_synced_with_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    files.sync_tree(tmp_path)
    everything = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"]
    assert sorted(synced) == sorted(path.stat().st_ino for path in everything)


def test_a_file_that_cannot_be_synced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
        files.sync_file(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "lock"])  # a folder that is there, a file that is made
def test_a_lock_has_one_holder_at_a_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with files.locked(path, "busy") as descriptor:
        assert descriptor is not None
        assert os.fstat(descriptor).st_ino == path.stat().st_ino
        with pytest.raises(RuntimeError, match=r"^busy$"), files.locked(path, "busy"):
            pass
    with files.locked(path, "busy"), pytest.raises(BlockingIOError):
        raise BlockingIOError  # what happens while it is held is not the lock's


def test_without_locks_in_the_system_whoever_comes_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.locked(tmp_path, "busy") as first, files.locked(tmp_path, "busy"):
        assert first is None
