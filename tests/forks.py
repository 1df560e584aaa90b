"""Processes that start at once: forked from a server that has imported PyTorch and the library, which takes seconds.

`start(code, ...)` stands for `subprocess.Popen([sys.executable, "-c", code, ...])` and `run` for `subprocess.run` in
what a test asks of a process of its own: that it can be ended by force, gets signals, has arguments, an environment, a
folder, and an exit code. A test of what a fresh interpreter imports, or of the memory that it takes, needs one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What takes long of what the commands import.
_IMPORTED = (
    *(
        "torch",
        "torch._dynamo",
        "torchvision",
        "accelerate",
        "timm",
        "pyarrow.parquet",
        "scipy.linalg",
        "faiss",
        "fastapi",
    ),
    *("pytest", "torch.utils.tensorboard", "bigr_repr.train.run", "bigr_repr.embed.run", "bigr_repr_cli.main"),
)
COMMAND = "from bigr_repr_cli.main import main; main()"  # `bigr-repr`, to be started with its arguments
# A shell's background jobs, and all that they start, ignore Ctrl-C unless told otherwise.
HEEDING = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND}"


class Forked:
    """A process, with what tests use of subprocess.Popen: text comes through pipes."""

    def __init__(self, status: socket.socket, stdout: int, stderr: int) -> None:
        self._status = status
        self.stdout, self.stderr = os.fdopen(stdout, encoding="utf-8"), os.fdopen(stderr, encoding="utf-8")
        self.pid = int(status.recv(64))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            self.returncode = int(self._status.recv(64))
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by force."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes until it has ended: stdout, stderr."""
        found = ["", ""]

        def read(number: int, file: io.TextIOWrapper) -> None:
            found[number] = file.read()
            file.close()

        readers = [
            threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found[0], found[1]

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()


class _Server:
    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
        )
        theirs.close()
        atexit.register(self.close)

    def start(self, request: dict[str, Any]) -> Forked:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (stdout, to_stdout), (stderr, to_stderr) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno(), to_stdout, to_stderr])
        theirs.close()
        os.close(to_stdout)
        os.close(to_stderr)
        return Forked(ours, stdout, stderr)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_running: dict[int, _Server] = {}  # by the process that asks


def start(
    code: str, arguments: Sequence[object] = (), *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Forked:
    """A process that runs the code as `__main__`. env: in place of this process's environment."""
    server = _running.get(os.getpid()) or _running.setdefault(os.getpid(), _Server())
    place = str(cwd or Path.cwd())
    given = [str(each) for each in arguments]
    return server.start({"code": code, "arguments": given, "environment": dict(env or os.environ), "place": place})


def run(
    code: str, arguments: Sequence[object] = (), *, check: bool = False, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The code, run to its end. check: it must end with 0."""
    with start(code, arguments, **options) as process:
        stdout, stderr = process.communicate(timeout)
        assert process.returncode is not None
        assert not check or process.returncode == 0, stderr[-4000:]
        return subprocess.CompletedProcess([code], process.returncode, stdout, stderr)


def run_command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`bigr-repr` with these arguments, run to its end."""
    return run(COMMAND, arguments, **options)


def run_together(count: int, code: str) -> None:
    """The code, in so many processes that train together, as torchrun starts them."""
    import torch

    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if count > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
        environment |= {"LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    with contextlib.ExitStack() as running:
        for process in [running.enter_context(start(code, env=environment | rank)) for rank in ranks]:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said[-2000:]


# In the server


def _become(request: dict[str, Any], stdout: int, stderr: int) -> str:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(request["place"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    random.seed()
    sys.argv = ["-c", *request["arguments"]]
    code: str = request["code"]
    return code


def _serve(requests: socket.socket) -> str:
    """Forks for every request. Returns only in a process that was forked: the code that it is to run."""
    while True:
        message, handles, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            os._exit(0)
        status, *streams = handles
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                requests.close()
                code = _become(json.loads(message), *streams)
                for handle in handles:
                    os.close(handle)
                return code
            for handle in streams:
                os.close(handle)
            os.write(status, str(child).encode())
            os.write(status, str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
            os._exit(0)
        for handle in handles:
            os.close(handle)


def _prepare() -> None:
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # memory that a child does not touch is not copied
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait


if __name__ == "__main__":
    _prepare()
    exec(compile(_serve(socket.socket(fileno=int(sys.argv[1]))), "<forked>", "exec"), {"__name__": "__main__"})
