"""A full disk is one line that names the file and says what to do, whoever writes; nothing half-written is left."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli import main
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.embed import embed_images, export_embeddings
from bigr_repr.retrieval import HammingIndex, build_index
from bigr_repr.retrieval.codes.dataset import DataCodes
from bigr_repr.retrieval.codes.files import export_data_codes
from bigr_repr.system import files
from bigr_repr.system.files import FULL_REMEDY, naming, replacing

resource = pytest.importorskip("resource")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow past so many bytes, whoever writes it: the system then says what it says of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    write_pictures(place / "photos", 40)
    embed_images(place / "photos", place / "rows", model=tiny_model(), layers=[2], codes=True, decode_timeout=None)
    return place / "rows"


WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "index": lambda rows, place: build_index(rows, place / "index"),
    "hnsw index": lambda rows, place: build_index(rows, place / "index", kind="hnsw", vectors=None),
    "codes.npy": lambda rows, place: export_data_codes(DataCodes(rows, "sign"), place / "codes.npy"),
    "codes.npz": lambda rows, place: export_data_codes(DataCodes(rows, "sign"), place / "codes.npz"),
    "codes.parquet": lambda rows, place: export_data_codes(DataCodes(rows, "sign"), place / "codes.parquet"),
    "rows.npy": lambda rows, place: export_embeddings(rows, place / "rows.npy"),
    "rows.csv": lambda rows, place: export_embeddings(rows, place / "rows.csv"),
    "rows.h5": lambda rows, place: export_embeddings(rows, place / "rows.h5"),
    "rows.tar": lambda rows, place: export_embeddings(rows, place / "rows.tar"),
    "model": lambda rows, place: save(tiny_model(), place / "model"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_names_the_file_and_leaves_nothing(name: str, data: Path, tmp_path: Path) -> None:
    for room in (0, 300, 3000) if name == "rows.h5" else (0, 300):
        with room_for(room), pytest.raises(OSError, match="free some space") as caught:
            WRITERS[name](data, tmp_path)
        assert str(caught.value.filename).startswith(str(tmp_path))
        assert not list(tmp_path.iterdir()), room
    WRITERS[name](data, tmp_path)


def test_an_index_that_is_there_stays(data: Path, tmp_path: Path) -> None:
    build_index(data, tmp_path / "index")
    before = sorted(tmp_path.rglob("*"))
    for _ in range(3):
        with room_for(1000), pytest.raises(OSError, match="free some space"):
            build_index(data, tmp_path / "index", kind="hnsw")
    assert sorted(tmp_path.rglob("*")) == before
    assert len(HammingIndex.load(tmp_path / "index")) == 40


def test_a_buffer_that_the_disk_does_not_take_is_no_second_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still in a buffer is written when the file is closed, which fails once more."""
    plain = Path.open

    class Full(io.FileIO):
        def write(self, content: Any, /) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "wb":
            return plain(path, mode, *arguments, **options)
        return io.BufferedWriter(Full(str(path), mode))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device; free some space"):
        build_index(data, tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_embedding_says_which_part(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 6)
    with room_for(900), pytest.raises(OSError, match=FULL_REMEDY) as caught:
        embed_images(tmp_path / "photos", tmp_path / "out", model=tiny_model(), layers=[2], decode_timeout=None)
    assert Path(str(caught.value.filename)).parent in (tmp_path / "out", tmp_path / "out" / "_run")
    assert not list(tmp_path.rglob(".*"))


def test_errors_of_other_libraries_are_told_by_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in (
        "Error while serializing: IoError(Os { code: 28, No space left on device })",
        "write error (os error 28)",
    ):
        with pytest.raises(OSError, match="free some space") as caught, naming(tmp_path / "weights"):
            raise RuntimeError(said)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "weights"))
    with pytest.raises(RuntimeError, match="not the disk"), naming(tmp_path / "weights"):
        raise RuntimeError("not the disk")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: os.terminal_size)  # not asked for other errors
    with pytest.raises(KeyError), naming(tmp_path / "weights"):
        raise KeyError("other")


def test_the_command_line_adds_what_to_do() -> None:
    plain = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/x")
    assert main._one_line(plain) == f"/mnt/x: No space left on device; {FULL_REMEDY}"
    assert main._one_line(OSError(errno.EACCES, "Permission denied", "/mnt/x")) == "/mnt/x: Permission denied"


def test_said_once(tmp_path: Path) -> None:
    with (
        room_for(0),
        pytest.raises(OSError, match="free some space") as caught,
        naming(tmp_path / "other"),
        replacing(tmp_path / "file") as file,
    ):
        file.write(np.ones(9).tobytes())
    assert str(caught.value).count("free some space") == 1
    assert caught.value.filename == str(tmp_path / "file")
