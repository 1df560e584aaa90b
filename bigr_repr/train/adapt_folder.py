"""The hidden folder in which an adaptation works and builds its model, until that is published. Knows no training."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bigr_repr.system.differences import differences
from bigr_repr.system.files import locked, replacing, sync_folder
from bigr_repr.system.records import read_record
from bigr_repr.train.resume import TrainingError, find_checkpoints

log = logging.getLogger(__name__)
RUN = "run"  # the folder of a training, of the generator or in that of the tokenizer
_LOCK, _REQUEST = "lock", "request.json"


def check_free(out: Path) -> None:
    """Raise FileExistsError if a model cannot become the folder `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder, or remove it")


def write_json(file: Path, facts: dict[str, Any]) -> None:
    """Write plain data, atomically. Raises OSError."""
    with replacing(file) as opened:
        opened.write(json.dumps(facts).encode())


class AdaptFolder:
    """The folder `path` next to `out`, and in it `model`, which becomes `out` once nothing is missing in it.

    Only the process that has claimed it may use it. The methods are for the main process.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.path = self.out.with_name(f".{self.out.name}.adapting")
        self.model = self.path / "model"
        self._held = ExitStack()

    def claim(self, request: dict[str, Any]) -> None:
        """Lock the folder, keep what the same request left in it, and remove what a different one left before training.

        Raises RuntimeError while another process has it, FileExistsError if `out` is not empty, TrainingError if a
        different request has trained.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"{self.out}: another process is adapting a model into this folder; wait for it, or choose another"
        with ExitStack() as held:
            held.enter_context(locked(self.path / _LOCK, busy))
            check_free(self.out)  # the other process may just have published
            self._keep_or_remove(request)
            self._held = held.pop_all()

    def _keep_or_remove(self, request: dict[str, Any]) -> None:
        file, wanted = self.path / _REQUEST, json.loads(json.dumps(request))
        if file.exists():
            found = read_record(file, remedy=f"remove {self.path}, and start again")
            if found == wanted:
                log.info("resuming the run in %s", self.path)
                return
            self._check_untrained(found, wanted)
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        write_json(file, wanted)

    def _check_untrained(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        if any(find_checkpoints(self.path / each) for each in (RUN, f"tokenizer/{RUN}")):
            said = "; ".join(differences(found, wanted))
            remedy = "repeat that command to resume it, choose another folder, or remove this one"
            raise TrainingError(f"{self.path} holds an interrupted run of another command: {said}; {remedy}")

    def publish(self) -> None:
        """Rename `model` to `out`, and remove the folder. Raises FileExistsError if `out` is no longer empty."""
        check_free(self.out)
        if self.out.exists():
            self.out.rmdir()  # empty; not every system can rename over it
        self.model.rename(self.out)
        sync_folder(self.out.parent)
        (self.path / _REQUEST).unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Let other processes claim the folder."""
        self._held.close()
