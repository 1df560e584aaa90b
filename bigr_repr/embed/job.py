"""One run on one folder: what is done, what is left, and the run's progress.

Independent of how rows are computed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bigr_repr.embed.dataset.damage import forget_damage, noted
from bigr_repr.embed.dataset.ledger import CHANGED, Ledger, UnitRecord
from bigr_repr.embed.dataset.lists import list_inputs
from bigr_repr.embed.dataset.parts import ListedPart, forget_parts, write_parts
from bigr_repr.embed.dataset.plan import Plan, commit_plan, extend_plan, revoke_plan
from bigr_repr.embed.dataset.schema import Recipe, incomparable_fields
from bigr_repr.embed.dataset.status import StatusFile
from bigr_repr.embed.inputs.changed import reopen, reopen_damaged, reopen_doubles
from bigr_repr.embed.inputs.dedup import Earlier, digests_now, list_digests, list_duplicates, release_doubles
from bigr_repr.embed.inputs.update import KnownInputs, changes
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.images.find import Source, escape_path
from bigr_repr.system.object_store import Place, is_url

log = logging.getLogger(__name__)

RunUnits = Callable[[Plan, Iterable[int]], None]  # does units of a plan
_UNIT = 1024
_UNIT_BYTES = 256 << 20
_AGAIN = (CHANGED, "unreachable")  # failures that every run retries
_REMEDY = "choose another output folder, or overwrite it"


def usual_unit_size(recipe: Recipe) -> int:
    """Default images per unit: as many as make a file of reasonable size."""
    return max(1, min(_UNIT, _UNIT_BYTES // recipe.row_bytes))


def check_rows(out: Place, old: Plan | None, recipe: Recipe, options: EmbedOptions) -> None:
    """Raise ValueError, which says what differs, if an earlier plan is not for such rows, whatever its inputs."""
    if old is None:
        return
    if not options.resume:
        raise ValueError(f"{out} already holds embeddings; resume, {_REMEDY}")
    found = incomparable_fields(old.provenance, recipe.provenance())
    if options.unit_size not in (None, old.unit_size):
        found.append(f"unit_size was {old.unit_size}, is {options.unit_size}")
    if found:
        raise ValueError(f"{out} holds other embeddings: {'; '.join(found)}; {_REMEDY}")


def _report_rewritten(plan: Plan) -> None:
    """Warn of files with several images that are not what was listed."""
    if rewritten := sorted(map(escape_path, plan.rewritten_files())):
        more = f" and {len(rewritten) - 1:,} more" if len(rewritten) > 1 else ""
        log.warning("%s%s changed after being listed; embed again with update", rewritten[0], more)


def _worth_another_try(plan: Plan, unit: int, record: UnitRecord) -> bool:
    """Whether every run retries a unit's failures: inputs that changed, were unreachable, or missing from a store."""
    errors = {failure.error for failure in record.failures}
    if not errors.isdisjoint(_AGAIN) or "missing" not in errors:
        return not errors.isdisjoint(_AGAIN)
    entries = plan.entries(unit)
    return any(failure.error == "missing" and is_url(entries[failure.place].file) for failure in record.failures)


class Progress(NamedTuple):
    """The progress of a run. total: None during listing, when done counts the inputs so far. failures: in total."""

    done: int
    total: int | None
    failures: int


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What a data set holds after a run, rows + failures + duplicates + dropped = inputs, and what the run did.

    duplicates: inputs without a row of their own, with dedup. gone: inputs that an update no longer found; dropped:
    those whose rows were removed, now or earlier, because they are gone or their Parquet or tar file was rewritten;
    changed: those re-embedded because their files changed. embedded: images that this run processed; the others were
    done before. seconds: for these, from the first to the last. batch_size: images per batch of the network.
    """

    out: Place
    inputs: int
    rows: int
    failures: int
    duplicates: int
    gone: int
    shards: int
    embedded: int
    seconds: float
    batch_size: int
    changed: int = 0
    dropped: int = 0


class EmbedJob:
    """One run on one folder: what is done, and the progress."""

    def __init__(
        self,
        out: Place,
        folder: Place,
        recipe: Recipe,
        report: Callable[[Progress], None],
        check: Callable[[], None] = lambda: None,
        engine: str = "local",
    ) -> None:
        """check: raises if this run may no longer write to the folder."""
        self._status = StatusFile(folder, engine)
        self.out, self.folder, self.recipe, self._report, self._check = out, folder, recipe, report, check
        self.ledger = Ledger(out, folder / "units")
        self._progress, self._gone, self._changed = Progress(0, None, 0), 0, 0
        self._aside: dict[int, str] = {}

    def plan(self, old: Plan | None, sources: Iterable[Source], options: EmbedOptions) -> Plan:
        """The plan to follow: the old one if it is for the same rows of the same inputs, or a new one if there is none.

        Raises ValueError that says what differs.
        """
        if old is None:
            return self._begin(sources, options)
        check_rows(self.out, old, self.recipe, options)
        if not options.update:
            once = len(old.lists) == 1
            changed = old.difference(sources, self._listed) if once else changes(old, sources, self._listed)
            if changed:
                remedy = f"add new inputs with update, {_REMEDY}"
                raise ValueError(f"{self.out} holds other embeddings: {changed}; {remedy}")
        if not options.update and (changed := old.changed_container()):
            raise ValueError(f"{self.out}: {changed}; embed its images again with update, {_REMEDY}")
        self.ledger.tidy()
        self.ledger.plan = old
        only = None if options.verify else noted(self.folder)
        if only is None or only:
            reopen_damaged(old, self.ledger, self.recipe.schema, only=only)
            forget_damage(self.folder)
        if self.recipe.dedup:
            reopen_doubles(old, self.ledger, self.recipe.schema, partial(digests_now, old, workers=options.workers))
        return self._extend(old, sources, options) if options.update else old

    def _begin(self, sources: Iterable[Source], options: EmbedOptions) -> Plan:
        unit_size = options.unit_size or usual_unit_size(self.recipe)
        listed = list_inputs(self.folder, sources, unit_size, self._listed)
        self._find_duplicates(None, options)
        revoke_plan(self.folder)
        self.ledger.clear()
        forget_damage(self.folder)
        forget_parts(self.folder)
        self.ledger.tidy()
        return commit_plan(self.folder, listed, unit_size, self.recipe.provenance())

    def _extend(self, old: Plan, sources: Iterable[Source], options: EmbedOptions) -> Plan:
        """The plan, extended by the sources that it lacks."""
        known = KnownInputs(old, old.rewritten_files())
        listed = list_inputs(self.folder, known.additions(sources, self._listed), old.unit_size, lambda found: None)
        self._gone = self.ledger.list_gone(known.gone())
        self._changed = reopen(old, self.ledger, self.recipe.schema, known, drop_gone=options.drop_gone).changed
        if not listed.inputs:
            return old
        self._find_duplicates(Earlier(old, self.ledger, known.found()), options)
        return extend_plan(old, listed, known.listed_anew)

    def _find_duplicates(self, before: Earlier | None, options: EmbedOptions) -> None:
        if self.recipe.dedup:
            list_digests(self.folder, before, options.workers, self._listed, self.recipe.parquet)

    def do(self, plan: Plan, run: RunUnits, *, retry_failed: bool) -> EmbedSummary:
        """Do what is left.  Raises what run raises; RuntimeError if files were changed in the meantime."""
        self.ledger.plan = plan
        if self.recipe.dedup and retry_failed:
            release_doubles(plan, self.ledger)
        duplicates = list_duplicates(plan, self.ledger) if self.recipe.dedup else 0
        todo, done, failed = self._left(plan, retry_failed)
        self._advance_to(Progress(done + duplicates, plan.inputs, failed))
        if todo:
            forget_parts(self.folder)
        started = time.monotonic()
        try:
            run(plan, todo)
            self._check()
            self._report_aside(plan)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                deque(self.ledger.list_failures(plan.units), maxlen=0)
            raise
        finally:
            self._status.tell(*self._progress, ended=True)
        seconds = time.monotonic() - started
        rows = without = dropped = 0
        parts = dict[int, ListedPart]()
        for unit, record in enumerate(self.ledger.list_failures(plan.units)):
            if record is not None:
                rows, without, dropped = rows + record.rows, without + len(record.failures), dropped + record.gone
                parts[unit] = ListedPart(record.rows, record.size, plan.id_of(unit))
        self.ledger.tidy()  # other workers have done the units of lost ones
        if rows + without + duplicates != plan.inputs:
            raise RuntimeError(f"{self.out}: files were changed during the run; run it again to redo them")
        write_parts(self.folder, parts.items(), self.recipe.schema)
        if todo:
            _report_rewritten(plan)
        return EmbedSummary(
            out=self.out, inputs=plan.inputs, rows=rows, failures=without - dropped, duplicates=duplicates,
            gone=self._gone, dropped=dropped, changed=self._changed, shards=plan.units,
            embedded=plan.inputs - duplicates - done, seconds=seconds, batch_size=self.recipe.batch_size,
        )  # fmt: skip

    def set_aside(self, unit: int, why: str) -> None:
        """Note a unit that could not be written; the run continues with others."""
        self._aside[unit] = why

    def _report_aside(self, plan: Plan) -> None:
        if self._aside:
            images = sum(map(plan.size, self._aside))
            raise ConnectionError(
                f"{len(self._aside)} units of {images:,} images could not be written; everything else is done; run it "
                f"again to write them ({next(iter(self._aside.values()))})"
            )

    def _left(self, plan: Plan, retry_failed: bool) -> tuple[list[int], int, int]:
        """Units to do, and how many inputs are finished: in total, and those that failed."""
        todo, done, failed = [], 0, 0
        for unit, record in enumerate(self.ledger.list_failures(plan.units)):
            left = record.gone if record else 0
            again = record is not None and _worth_another_try(plan, unit, record)
            if record is None or again or (retry_failed and record.failures):
                todo.append(unit)
                done += left + (record.rows if record else 0)
            else:
                done, failed = done + record.rows + len(record.failures), failed + len(record.failures) - left
        return todo, done, failed

    def _listed(self, count: int) -> None:
        self._advance_to(Progress(count, None, 0))

    def advance(self, images: int, failures: int, by: str = "") -> None:
        """Count processed images, including failures. by: the worker, if it finished a whole unit."""
        done, total, failed = self._progress
        self._advance_to(Progress(done + images, total, failed + failures), by)

    def _advance_to(self, progress: Progress, by: str = "") -> None:
        self._check()
        self._progress = progress
        self._status.tell(*progress, by=by)
        self._report(progress)
