"""Laws of files on the disk: what is written is synced before it counts, and a lock has one holder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_model

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.embed.dataset.plan import revoke_plan
from bigr_repr.retrieval import HammingIndex
from bigr_repr.system import files
from bigr_repr.train.resume import save_checkpoint


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Inodes of what has been synced; a file that is renamed or written again keeps or changes its own."""
    found: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: found.add(os.fstat(handle).st_ino))
    return found


def unsynced(folder: Path, synced: set[int]) -> list[str]:
    everything = [folder, *folder.rglob("*")]
    return [str(path) for path in everything if path.stat().st_ino not in synced]


def test_a_file_is_synced_before_it_takes_its_place(tmp_path: Path, synced: set[int]) -> None:
    with files.replacing(tmp_path / "file") as file:
        file.write(b"x")
        inode = os.fstat(file.fileno()).st_ino
    assert inode == (tmp_path / "file").stat().st_ino
    assert not unsynced(tmp_path, synced)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "hash"])
def test_all_files_of_an_index_are_synced(
    tmp_path: Path, synced: set[int], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def rename(path: Path, target: Path) -> Path:  # the manifest may only speak of files whose names are on the disk
        assert path.parent.stat().st_ino in synced
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", rename)
    codes = np.random.default_rng(0).integers(0, 256, (300, 8), np.uint8)
    HammingIndex.build(codes, kind=kind).save(tmp_path / "index")
    assert not unsynced(tmp_path / "index", synced)


def test_all_files_of_a_model_folder_are_synced(tmp_path: Path, synced: set[int]) -> None:
    for _ in range(2):  # a new folder, and one that is replaced
        save(tiny_model(), tmp_path / "model")
        assert not unsynced(tmp_path, synced)
        synced.clear()


def test_a_checkpoint_is_synced_with_the_folder_it_appears_in(tmp_path: Path, synced: set[int]) -> None:
    def save_state(folder: str) -> None:
        (Path(folder) / "inner").mkdir(parents=True)
        (Path(folder) / "inner" / "state.bin").write_bytes(b"x")

    one: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, save_state=save_state)
    average: Any = SimpleNamespace(state=lambda: {"x": torch.zeros(1)}, updates=1)
    save_checkpoint(tmp_path, 7, one, average, {}, keep=1)
    assert len(list((tmp_path / "checkpoint-000000007").rglob("*"))) == 5
    assert not unsynced(tmp_path, synced)


def test_a_plan_that_is_revoked_is_gone_from_the_disk(tmp_path: Path, synced: set[int]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    revoke_plan(tmp_path)
    assert tmp_path.stat().st_ino in synced
    assert not (tmp_path / "plan.json").exists()


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
    with pytest.raises(OSError, match=r"No space left on device; free some space .*: '.*file'"):
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


def test_where_a_file_system_has_no_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def flock(handle: int, how: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    refuse(errno.ENOLCK)
    with files.locked(tmp_path, "busy"), files.locked(tmp_path, "busy"):
        pass
    refuse(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), files.locked(tmp_path, "busy"):
        pass
