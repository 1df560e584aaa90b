"""The suite leaves nothing on disk but the folders of tests that failed, and needs room for only one module at a time.

pytest removes a passed test's `tmp_path` at once (pyproject.toml). Here the folders that a module's fixtures made go
with the module, and so does what tests and the processes they start leave in the system's folder for temporary files.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained

os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")  # they take 300 MB
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: the processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What other packages leave: PyTorch's compiler and launcher, Ray, Milvus, Weights & Biases, browsers.
_OF_OTHERS = (
    *("torchinductor_*", "torchelastic_*", "ray", "milvus.*", "tmp*.db.sock", "wandb-*", "tmp*wandb-*"),
    *("playwright*", "org.chromium.*", ".org.chromium.*"),
)
_ENDING = 60.0  # seconds that processes of a test may take to end, and to remove what is theirs


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not any(path.match(pattern) for pattern in _OF_OTHERS)]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What was imported stays: to look through it for garbage again and again would take a sixth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files of this run and its processes: short, for it holds sockets."""
    tmp_path_factory.getbasetemp()  # is not in it
    usual = {name: os.environ.get(name) for name in ("TMPDIR", "RAY_TMPDIR")}
    folder = tempfile.mkdtemp(prefix="test-")
    Path(folder).chmod(0o711)  # some tests run as another user
    os.environ.update(dict.fromkeys(usual, folder))
    tempfile.tempdir = None
    yield Path(folder)
    for name, value in usual.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _frugal(_temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes what the module's fixtures wrote; tests that leave temporary files behind fail."""
    root = tmp_path_factory.getbasetemp()
    before = set(root.iterdir())
    yield
    for folder in set(root.iterdir()) - before:
        if not folder.name.startswith("test_"):  # that of a test that failed
            shutil.rmtree(folder, ignore_errors=True)
    until = time.monotonic() + _ENDING
    while (left := _left(_temporary)) and time.monotonic() < until:
        time.sleep(0.1)
    for path in _temporary.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    assert not left, f"these tests left temporary files behind: {', '.join(sorted(left))}"


# ---- for tests to use


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    """A tiny model with random weights."""
    from tiny_model import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models this small, threads cost more than they bring, many times more on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bigr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process, in an empty folder: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path | int) -> tuple[int, str, str]:
        from bigr_repr_cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bigr-repr", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main.main()
        said = capfd.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run
