"""Tar shards that a plan has already listed: their pictures come from the plan, without reading the shards again."""

from __future__ import annotations

from collections import Counter
from threading import Lock

from bigr_repr.embed.dataset.containers import Container, same_stamp, stamp_of
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.images.find import Source, unescape_path


class RememberedTars:
    """What a plan knows about tar shards. Thread-safe."""

    def __init__(self, plan: Plan | None) -> None:
        self._plan, self._lock = plan, Lock()
        known = list(plan.containers()) if plan is not None and plan.knows_containers else []
        lists = Counter(each.file for _, each in known)  # of a shard that grew, each list has a part
        self._known: dict[str, tuple[int, Container]] = {
            each.file: (number, each) for number, each in known if each.run is not None and lists[each.file] == 1
        }

    def pictures(self, file: str) -> list[Source] | None:
        """The pictures in a tar shard, in order; None if it is unknown or has changed."""
        if self._plan is None or file not in self._known:
            return None
        number, held = self._known[file]
        if held.run is None or not same_stamp(file, held.stamp, stamp_of(file)):
            return None
        with self._lock:
            entries = list(self._plan.stretch(number, *held.run))
        if any(entry.start is None or entry.size is None or entry.file != file for entry in entries):
            return None
        if len({each[:4] for each in entries}) < len(entries):  # the shard was named twice in a row
            return None
        return [
            Source(unescape_path(each.path), file, each.start, each.size, each.label, stamp=held.stamp)
            for each in entries
        ]
