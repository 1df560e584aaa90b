"""Child processes, each at the other end of a connection, and their end. Knows nothing of what they do.

They are started as programs, not by multiprocessing: the caller's script is not run again in them, so that it
needs no `if __name__ == "__main__"`, and no thread or lock of the caller is copied into them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

_ABANDON = 5.0  # seconds after which a process that cannot be killed (its disk does not answer) is abandoned


def supported() -> bool:
    """Whether programs can inherit open files on this system, as in POSIX."""
    return os.name == "posix"


class Child:
    """A process that runs function(connection) of a module, and ends when its end of the connection closes.

    keep_open: descriptors that it also keeps open. It ignores Ctrl-C: its parent decides.
    """

    def __init__(self, module: str, function: str, keep_open: Sequence[int] = ()) -> None:
        self.connection, theirs = Pipe()
        code = f"from bigr_repr.system.processes import run; from {module} import {function}; run({function})"
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno(), *keep_open],
                start_new_session=True, env=environment,
            )  # fmt: skip

    def kill(self) -> None:
        """End the process. Unlike end() it may be called while another thread uses the connection."""
        self._process.kill()

    def end(self) -> str:
        """Close the connection, end the process if it is still running, and return how it ended: "SIGSEGV", "exit code
        1"."""
        self.connection.close()
        ended = self._process.poll()
        if ended is None:
            self._process.kill()
        try:
            code = self._process.wait(_ABANDON)
        except subprocess.TimeoutExpired:
            return "not at all"
        return _in_words(code)

    def outcome(self) -> str:
        """How a process that has closed its end of the connection ended."""
        try:
            self._process.wait(_ABANDON)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self.end()


def _in_words(code: int) -> str:
    import signal

    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def run(function: object) -> None:
    """Main function of a Child's program: calls function(connection), until it returns or the other end closes."""
    assert callable(function)
    with Connection(int(sys.argv[1])) as connection:
        try:
            function(connection)
        except (EOFError, ConnectionError):  # the parent is gone
            sys.exit(1)


def end_with_parent() -> None:
    """End this process, one that multiprocessing has started, as soon as its parent is gone, whatever it is doing.

    An initializer for pools: by themselves, their processes outlive a parent that is killed.
    """
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)  # exit would wait for the work

    threading.Thread(target=wait, name="parent", daemon=True).start()
