"""Runs embed_images in processes that end by force, at every step by which it changes the disk, or at any moment.

A server forks a process a run, and imports what a run has imported before it forks the next, so that a run takes
milliseconds. In that process the functions through which Python changes the disk are wrapped: each call is a numbered,
named step, at which the process kills itself or is told that the disk is full. The code under test knows nothing of
this.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ERRNO = {"full": errno.ENOSPC, "broken": errno.EIO}


class Steps:
    """Counts steps; at number `at`, what `fault` says happens: "kill", "full" (and stays so) or "broken" (once)."""

    def __init__(self, fault: str | None, at: int) -> None:
        self.fault, self.at, self.names = fault, at, list[str]()
        self._is_full = False

    def __call__(self, name: str, halfway: Callable[[], object] = lambda: None) -> None:
        """Take a step. halfway: what the disk has of it when it fails."""
        number = len(self.names)
        self.names.append(name)
        due = number == self.at and self.fault is not None
        if due:
            halfway()
        if due and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self._is_full |= due and self.fault == "full"
        grows = name.split(maxsplit=1)[0] in ("open", "write", "fsync", "mkdir")
        if (due and self.fault == "broken") or (self._is_full and (due or grows)):
            assert self.fault is not None
            raise OSError(ERRNO[self.fault], os.strerror(ERRNO[self.fault]))

    def install(self) -> None:
        """Wrap the functions in this process."""
        for name in ("replace", "unlink", "mkdir"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        fsync, steps = os.fsync, self

        def counted_fsync(handle: int) -> None:
            steps(f"fsync {Path(f'/proc/self/fd/{handle}').readlink().name}")
            fsync(handle)

        class File(io.FileIO):
            def write(self, content: Any, /) -> int | None:
                def half() -> None:
                    super(File, self).write(bytes(content)[: len(content) // 2])

                steps(f"write {Path(str(self.name)).name}", half)
                return super().write(content)

        plain_open = Path.open

        def counted_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode not in ("wb", "ab"):
                return plain_open(path, mode, *arguments, **options)
            steps(f"open {path.name}")
            return io.BufferedWriter(File(str(path), mode))

        os.fsync = counted_fsync
        Path.open = counted_open  # type: ignore[method-assign,assignment]

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            self(f"{name} {Path(path).name}")
            return function(path, *arguments, **options)

        return counted


class Server:
    """The forking server, to ask for runs."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, fault: str | None = None, at: float = 0, **options: Any) -> dict[str, Any]:
        """One run of embed_images(**options). at: the step, or for "timer" the seconds after which it is killed.

        Returns {"killed": bool, "error": str or None, "steps": names}; no steps of what was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"fault": fault, "at": at, "options": options}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the server."""
        self._process.communicate()


class Extractor:
    """In place of a FeatureExtractor: rows that depend on the picture alone, at once."""

    def __init__(self, pre: Any, layers: Any, *arguments: Any, **options: Any) -> None:
        import torch

        from bigr_repr.features.condition import NO_CONDITION

        self.config, self._layers, self.group = pre.config, list(layers), 2
        self.device, self.dtype, self.precision = torch.device("cpu"), torch.float32, "float32"
        self.condition = NO_CONDITION

    def __call__(self, images: Any) -> Any:
        import torch

        from bigr_repr.features.extractor import Features

        pixels = images.float().reshape(len(images), 3 * 32 * 32)
        codes = torch.zeros(len(images), 16, 12, dtype=torch.bool)
        rows = {layer: pixels[:, layer : layer + 64] for layer in self._layers}
        return Features(rows, codes, torch.ones(len(images), dtype=torch.bool))


def _child(request: dict[str, Any], pre: Any, answers: int) -> None:
    known = set(sys.modules)
    from bigr_repr.embed import embed_images

    steps = Steps(None if request["fault"] == "timer" else request["fault"], int(request["at"]))
    error = None
    if request["fault"] != "timer":
        steps.install()
    try:
        embed_images(model=pre, decode_timeout=None, workers=1, **request["options"])
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        if not isinstance(caught, OSError | ValueError):
            traceback.print_exc()
    imported = sorted(set(sys.modules) - known)
    os.write(
        answers, json.dumps({"killed": False, "error": error, "steps": steps.names, "imported": imported}).encode()
    )


def main() -> None:
    import pyarrow as pa
    import torch
    from tiny_model import tiny_model

    from bigr_repr.features import extractor

    torch.set_num_threads(1)
    extractor.FeatureExtractor = Extractor  # type: ignore[assignment,misc]  # the disk is in question, not the network
    pa.array(["text"])  # imports pandas, if that is installed
    pre = tiny_model()
    pre.fingerprint  # noqa: B018 - computed once
    gc.collect()
    gc.freeze()  # memory that a child does not touch is not copied
    for line in sys.stdin:
        request = json.loads(line)
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _child(request, pre, theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        if request["fault"] == "timer":
            time.sleep(request["at"])
            os.kill(child, signal.SIGKILL)
        hung = not select.select([ours], [], [], 60)[0]
        if hung:
            os.kill(child, signal.SIGKILL)
        with os.fdopen(ours) as answers:
            answer = json.loads(answers.read() or '{"killed": true, "error": null, "steps": []}')
        os.waitpid(child, 0)
        if hung:
            answer = {"killed": False, "error": "hung", "steps": []}
        for name in answer.pop("imported", []):
            importlib.import_module(name)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
