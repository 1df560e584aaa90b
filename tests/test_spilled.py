"""Records on a disk are what they would be in memory, and in the same order."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.inputs import dedup, update
from bigr_repr.images import sorting
from bigr_repr.system import spilled
from bigr_repr.system.spilled import SpilledArray, columns_of, sorted_by

KIND = np.dtype([("key", "S16"), ("number", np.int64)])


def filled(keys: np.ndarray, in_memory: int) -> SpilledArray:
    made = SpilledArray(len(keys), KIND, in_memory)
    made.values["key"], made.values["number"] = keys, np.arange(len(keys))
    return made


def test_sorting_on_a_disk_is_sorting_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilled, "_CHUNK", 4096)
    keys = np.random.default_rng(0).integers(0, 256, (5000, 16), np.uint8)
    keys[::7] = keys[0]  # equal ones stay in their order
    keys[::11, -3:] = 0
    texts = keys.view("S16").ravel()
    one, two = (sorted_by(filled(texts, room), "key", room) for room in (1 << 30, 0))
    assert (one.spilled, two.spilled) == (False, True)
    assert one.values.tobytes() == two.values.tobytes()
    two.release()
    for name, column in columns_of(two, 0).items():
        assert column.spilled
        np.testing.assert_array_equal(column.values, one.values[name])


def test_nothing_is_lost_when_memory_is_given_back() -> None:
    array = SpilledArray(1 << 16, np.int64, 0)
    array.values[:] = np.arange(1 << 16)
    array.release()
    np.testing.assert_array_equal(array.values, np.arange(1 << 16))
    assert len(SpilledArray(0, np.int64)) == 0


def test_doubles_are_found_on_a_disk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    digests = random.integers(0, 256, (64, 32), np.uint8)[random.integers(0, 64, 4000)]
    digests[random.integers(0, 4000, 300)] = 0  # could not be read: nobody's double
    expected, seen = [], dict[bytes, int]()
    for number, digest in enumerate(map(bytes, digests)):
        expected.append(seen.setdefault(digest, number) if any(digest) else number)
    for room in (spilled.IN_MEMORY, 0):
        monkeypatch.setattr(spilled.SpilledArray.__init__, "__defaults__", (room,))
        monkeypatch.setattr(spilled, "_CHUNK", 40 * 17)
        held = SpilledArray(4000, np.dtype([("sha256", "S32")]))
        held.values["sha256"] = digests.view("S32").ravel()
        assert dedup._first_of_each(held).values.tolist() == expected


def test_names_of_a_large_folder_are_sorted_on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_RUN": 10, "_LONG_RUN": 25, "_HELD": 300, "_PIECE": 7}.items():
        monkeypatch.setattr(sorting, name, value)
    names = [f"{number * 7919 % 1000:x}".encode() * (1 + number % 3) for number in range(1000)]
    assert list(sorting.sorted_names(iter(names))) == sorted(names)
    assert list(sorting.sorted_names(iter(names[:9]))) == sorted(names[:9])
    assert list(sorting.sorted_names(iter([]))) == []


def test_an_update_finds_the_same_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigr_repr.embed.dataset.lists import list_inputs
    from bigr_repr.embed.dataset.plan import commit_plan, open_plan
    from bigr_repr.images.find import Source

    (tmp_path / "_run").mkdir()
    sources = [Source(f"{number:04d}.jpg", f"/photos/{number:04d}.jpg") for number in range(500)]
    listed = list_inputs(tmp_path / "_run", sources, 64, lambda count: None)
    commit_plan(tmp_path / "_run", listed, 64, {})
    plan = open_plan(tmp_path / "_run")
    assert isinstance(plan, Plan)
    new = [Source(f"x{number}.jpg", f"/photos/x{number}.jpg") for number in range(20)]
    for room in (spilled.IN_MEMORY, 0):
        monkeypatch.setattr(spilled.SpilledArray.__init__, "__defaults__", (room,))
        monkeypatch.setattr(spilled, "IN_MEMORY", room)
        known = update.KnownInputs(plan)
        mixed = [each for pair in zip(sources[5:25], new, strict=True) for each in pair] + sources[25:]
        assert list(known.additions(mixed, lambda count: None)) == new
        assert list(known.gone()) == [source.path for source in sources[:5]]
        assert known.found().sum() == 495
        with pytest.raises(ValueError, match="recorded for a different file"):
            list(update.KnownInputs(plan).additions([Source("0003.jpg", "/elsewhere")], lambda count: None))
        with pytest.raises(ValueError, match="recorded under a different path"):
            list(update.KnownInputs(plan).additions([Source("new.jpg", "/photos/0003.jpg")], lambda count: None))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_file_system_that_cannot_reserve_is_not_a_full_one(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(handle: int, start: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    if code == errno.ENOSPC:
        with pytest.raises(OSError, match="free some space"):
            SpilledArray(100, np.int64, 0)
    else:
        array = SpilledArray(100, np.int64, 0)
        array.values[:] = 5
        assert array.spilled
        assert array.values.sum() == 500


def test_hashing_reports_how_many_inputs_are_done_and_gives_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "_REPORT", 2)
    target, reported, released = np.empty(5, "S32"), list[int](), list[int]()
    dedup._fill(target, [b"one", b"two", b"three", b"four", b"five"], lambda: released.append(1), reported.append)
    assert target.tolist() == [b"one", b"two", b"three", b"four", b"five"]
    assert (reported, len(released)) == ([2, 4], 2)
