"""Finds which inputs a plan already has, and which of its inputs no longer exist. Independent of what they are.

Where an input is in a container, such as a tar shard, says nothing once that was rewritten: all that it holds now is
new to the plan, and supersedes what it held before.

Inputs are identified by 16-byte digests in sorted arrays, 57 bytes per input of the plan, 65 with labels and 4 more if
containers were rewritten, which move to temporary files when they are large: see bigr_repr.system.spilled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bigr_repr.embed.dataset.entry import Entry, as_entry, same_label
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.images.find import Source, escape_path
from bigr_repr.system.differences import differences
from bigr_repr.system.spilled import SpilledArray, columns_of, sorted_by

_BLOCK, _STEPS = 8192, 32  # inputs looked up at a time, and the number of steps
_KIND = "S16"  # NumPy ignores trailing zeros in such strings; at a fixed length this makes no two equal
_RECORD = [("path", _KIND), ("place", _KIND), ("number", np.int64)]
_LABEL = [("label", "S8")]
_Digests = NDArray[np.bytes_]


class KnownInputs:
    """The inputs of a plan, for looking up others.

    rewritten: containers that changed since they were listed. Once additions() is exhausted: listed_anew: those of them
    that are among the sources; anew: the number of sources in them; labels: present labels that differ from the plan's,
    by the input's number, None if the data set holds no labels.
    """

    def __init__(self, plan: Plan, rewritten: Collection[str] = ()) -> None:
        self._plan, self.listed_anew, self.anew = plan, set[str](), 0
        self._files = {file: number for number, file in enumerate(sorted(rewritten), 1)}
        some = bool(rewritten or plan.rewritten)
        self._file = SpilledArray(plan.inputs if some else 0, np.int32)  # 0: not rewritten; -1: superseded before
        self.labels: dict[int, str | None] | None = {} if plan.provenance.get("labels") else None
        records = SpilledArray(plan.inputs, np.dtype(_RECORD + _LABEL * (self.labels is not None)))
        places = SpilledArray(plan.inputs, np.dtype([("place", _KIND)]))
        start = 0
        for unit in range(plan.units):
            entries = plan.entries(unit)
            part = slice(start, start + len(entries))
            records.values["path"][part], records.values["place"][part] = _digests(entries)
            records.values["number"][part] = np.arange(part.start, part.stop)
            if self.labels is not None:
                records.values["label"][part] = _label_digests(entries)
            places.values["place"][part] = records.values["place"][part]
            if some:
                self._file.values[part] = [self._files.get(each.file, 0) for each in entries]
                superseded = list(plan.superseded(unit))
                self._file.values[part][superseded] = -1
                places.values["place"][part][superseded] = b""  # no input is there any more
            start += len(entries)
            for array in (records, places, self._file):
                array.release()
        self._by_path = columns_of(sorted_by(records, "path"))
        self._sorted_places = sorted_by(places, "place")
        self._seen = SpilledArray(plan.inputs, np.bool_)

    def additions(self, sources: Iterable[Source], on_listed: Callable[[int], None]) -> Iterator[Source]:
        """The sources that the plan lacks, in order.

        All sources in rewritten containers are among them. Raises ValueError for a source with the recorded path of a
        different file, because paths would be ambiguous; and for one that is recorded under a different path, because
        it would get a second row.
        """
        found, sources = 0, iter(sources)
        while block := list(islice(sources, _BLOCK)):
            entries = [as_entry(source) for source in block]
            for source, entry, known in zip(block, entries, self._known(entries), strict=True):
                if not known:
                    if entry.file in self._files:
                        self.listed_anew.add(entry.file)
                        self.anew += 1
                    yield source
                    continue
                if known != "all":
                    raise ValueError(self._conflict(entry, known))
            found += len(block)
            on_listed(found)

    def _conflict(self, entry: Entry, known: str) -> str:
        """What is wrong with an input whose path or place is another input's. known: which of them."""
        of_plan = (each for unit in range(self._plan.units) for each in self._plan.entries(unit))
        if known == "path":
            held = next(each for each in of_plan if each.path == entry.path)
            remedy = "name the same inputs, or a root that contains both"
        else:
            held = next(each for each in of_plan if each[1:4] == entry[1:4])
            remedy = (
                "name the inputs as the first run did, or choose a root below which their paths are the recorded ones"
            )
        file = escape_path(entry.file)
        if held.file == entry.file and entry.start is not None:
            found = ", ".join(differences(held._asdict(), entry._asdict()))
            return (
                f"{entry.path} in {file}: {found}; if that file has changed, start again with overwrite, else {remedy}"
            )
        if known == "path":
            return f"{entry.path} is recorded for a different file than {file}, {escape_path(held.file)}; {remedy}"
        return f"{file} is recorded under a different path than {entry.path}, {held.path}; {remedy}"

    def found(self) -> NDArray[np.bool_]:
        """Which of the plan's inputs were among the sources, in plan order; valid once additions() is exhausted."""
        seen: NDArray[np.bool_] = self._seen.values
        return seen

    def superseded(self, start: int, count: int) -> NDArray[np.bool_]:
        """Whether each of `count` inputs of the plan was in a container that was listed anew, now or earlier."""
        if not len(self._file):
            return np.zeros(count, np.bool_)
        anew = [-1, *(self._files[file] for file in self.listed_anew)]
        found: NDArray[np.bool_] = np.isin(self._file.values[start : start + count], anew)
        return found

    def gone(self) -> Iterator[str]:
        """Paths of the plan's inputs that were not among the sources, in plan order; once additions() is exhausted.

        Without those that were superseded.
        """
        seen, start = self.found(), 0
        for unit in range(self._plan.units):
            count = self._plan.size(unit)
            missing = np.flatnonzero(~(seen[start : start + count] | self.superseded(start, count)))
            start += count
            if len(missing):
                entries = self._plan.entries(unit)
                yield from (entries[place].path for place in missing)

    def _known(self, entries: list[Entry]) -> list[str]:
        """For each entry, which parts the plan has: "" nothing, "path" or "place" only that, "all" both."""
        paths, places = _digests(entries)
        held = {name: column.values for name, column in self._by_path.items()}
        known = np.zeros(len(entries), "S5")
        for asked in np.array_split(np.argsort(paths), _STEPS):  # neighbors together, so that few pages are mapped
            starts, ends = (np.searchsorted(held["path"], paths[asked], side) for side in ("left", "right"))
            for ask, start, end in zip(asked.tolist(), starts.tolist(), ends.tolist(), strict=True):
                if end > start:
                    counts = self._counting(entries[ask].file, held["number"][start:end])
                    same = counts & (held["place"][start:end] == places[ask])
                    self._seen.values[held["number"][start:end][same]] = True
                    known[ask] = b"all" if same.any() else b"path" if counts.any() else b""
                    if self.labels is not None:
                        self._note_label(entries[ask], np.arange(start, end)[same])
            for column in self._by_path.values():
                column.release()
        left = np.flatnonzero(known == b"")
        if len(left) and len(self._sorted_places):
            held_places = self._sorted_places.values["place"]
            wanted = np.sort(places[left])
            at = np.searchsorted(held_places, wanted).clip(max=len(held_places) - 1)
            elsewhere = wanted[held_places[at] == wanted]
            of_others = left[np.isin(places[left], elsewhere)]
            known[[ask for ask in of_others.tolist() if entries[ask].file not in self._files]] = b"place"
        for array in (self._sorted_places, self._seen, self._file):
            array.release()
        return [word.decode() for word in known.tolist()]

    def _counting(self, file: str, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the plan's inputs count beside a source in a file: not superseded ones, or those it held before."""
        if not len(self._file):
            return np.ones(len(numbers), np.bool_)
        counting: NDArray[np.bool_] = ~np.isin(self._file.values[numbers], [-1, self._files.get(file, -1)])
        return counting

    def _note_label(self, entry: Entry, places: NDArray[np.int64]) -> None:
        """Note the label of an input if it is not the plan's. places: of the input in the sorted arrays."""
        before, numbers = (self._by_path[name].values[places].tolist() for name in ("label", "number"))
        now = _label_digests([entry])[0]
        assert self.labels is not None
        self.labels.update((number, entry.label) for number, label in zip(numbers, before, strict=True) if label != now)


def changes(plan: Plan, sources: Iterable[Source], on_listed: Callable[[int], None]) -> str | None:
    """A description of how sources differ from a plan's inputs, regardless of order; None if they do not."""
    known = KnownInputs(plan)
    added = [escape_path(source.file) for source in islice(known.additions(sources, on_listed), 1)]
    if added:
        return f"{added[0]} is new"
    gone = next(known.gone(), None)
    return None if gone is None else f"{gone} is missing"


def _digests(entries: list[Entry]) -> tuple[_Digests, _Digests]:
    """Digests of their recorded paths, and of their locations."""
    paths = [entry.path.encode() for entry in entries]
    places = [f"{entry.file}\0{entry.start}\0{entry.size}".encode("utf-8", "surrogateescape") for entry in entries]
    digest_paths, digest_places = (
        np.array([blake2b(text, digest_size=16).digest() for text in texts], _KIND) for texts in (paths, places)
    )
    return digest_paths, digest_places


def _label_digests(entries: list[Entry]) -> _Digests:
    """Digests of labels, 8 bytes each, equal for those that same_label takes as equal."""
    texts = ["" if same_label(entry.label, None) else f"={entry.label}" for entry in entries]
    return np.array([blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest() for text in texts], "S8")
