"""The parts of an index, and how they change with its rows. Knows nothing of files or queries."""

# n rows (images)

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import check_length
from bigr_repr.retrieval.codes.binarizer import Binarizer, finite_rows
from bigr_repr.retrieval.codes.columns import KeptColumns, column_table
from bigr_repr.retrieval.codes.ids import IdValues, id_array
from bigr_repr.retrieval.codes.provenance import parse_provenance
from bigr_repr.retrieval.codes.regions import TokenLayout
from bigr_repr.retrieval.codes.rows import IndexRows, packed
from bigr_repr.retrieval.codes.source import DataSource
from bigr_repr.retrieval.index.recall import SelfCheck
from bigr_repr.retrieval.index.settings import IndexSettings

if TYPE_CHECKING:
    from bigr_repr.retrieval.index.approximate import Approximate

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The parts of an index: its rows, the structures that search them, and what they are."""

    rows: IndexRows
    n_bits: int
    settings: IndexSettings
    approximate: Approximate | None
    binarizer: Binarizer | None
    layout: TokenLayout | None
    provenance: Mapping[str, Any] | None
    self_check: SelfCheck | None
    source: DataSource | None = None

    @classmethod
    def built(cls, rows: IndexRows, n_bits: int, settings: IndexSettings, **made: Any) -> Parts:
        """Parts of given rows; made: the other fields. Builds, tunes and checks approximate kinds."""
        plain: dict[str, Any] = dict.fromkeys(("binarizer", "layout", "provenance", "self_check", "source")) | made
        if settings.exact or not len(rows):
            return cls(rows, n_bits, settings, None, **plain)
        from bigr_repr.retrieval.index.approximate import Approximate

        approximate = Approximate.build(settings, rows.codes)
        check = approximate.check(rows.codes)
        approximate.settings = check.tuned(approximate.settings)
        log.info("%s: %s", settings.kind, check)
        return cls(rows, n_bits, approximate.settings, approximate, **plain | {"self_check": check})

    @classmethod
    def of_codes(
        cls,
        codes: ArrayLike,
        *,
        ids: IdValues | None,
        settings: IndexSettings,
        n_bits: int | None,
        bits_per_token: int | None,
        vectors: ArrayLike | None,
        columns: KeptColumns | None,
        provenance: Mapping[str, Any] | None,
    ) -> Parts:
        """See HammingIndex.build."""
        array = packed(codes, None, "codes")
        bits = 8 * array.shape[1] if n_bits is None else n_bits
        check_length(array, bits)
        floats = None
        if vectors is not None:
            floats = finite_rows("vectors", vectors)
            floats = floats if floats.dtype in (np.float16, np.float32) else floats.astype(np.float32)
            if len(floats) != len(array):
                raise ValueError(f"{len(floats)} vectors for {len(array)} codes; give one per code")
        layout = None if bits_per_token is None else TokenLayout.square(bits, bits_per_token)
        kept = column_table(columns, len(array))
        rows = IndexRows(ids=id_array(ids, len(array), distinct=True), codes=array, vectors=floats, columns=kept)
        return cls.built(rows, bits, settings, layout=layout, provenance=parse_provenance(provenance))

    def settled(self) -> Parts:
        """With an approximate index of exactly these rows, as if no update had appended or dropped any."""
        if self.approximate is None or not len(self.rows):
            return self
        approximate, codes = self.approximate.settled(self.rows.codes)
        return self._replace(approximate=approximate, rows=self.rows.with_codes(codes))

    def joined(self, more: IndexRows) -> Parts:
        """With more rows; the self-check stays that of the first build.  Raises ValueError for incompatible rows."""
        rows, settled = self.rows.joined(more), self.settled()
        if settled.approximate is not None:
            settled.approximate.add(more.codes)
        elif not self.settings.exact:
            settled = Parts.built(rows, self.n_bits, self.settings, binarizer=self.binarizer, layout=self.layout,
                                  provenance=self.provenance)  # fmt: skip
        return settled._replace(rows=rows, source=None)  # the rows no longer come from one data set

    def keeping(self, kept: NDArray[np.int64]) -> Parts:
        """With only these rows, ascending. If none are left, the next addition rebuilds the index."""
        settled = self.settled()
        rows, source = settled.rows.taken(kept), None if self.source is None else self.source.keeping(kept)
        approximate = settled.approximate
        if not len(kept):
            settings = replace(self.settings, lists=None, hash_bits=None, effort=None)
            return settled._replace(rows=rows, approximate=None, settings=settings, self_check=None, source=source)
        if approximate is not None:
            approximate = approximate.moved(kept, rows.codes)
        return settled._replace(rows=rows, approximate=approximate, source=source)

    def moved(self, rows: IndexRows, rows_of: NDArray[np.int64], source: DataSource) -> Parts:
        """Parts of other rows, where row i is this one's row rows_of[i], or new where that is -1; consumes this.

        An approximate index keeps its effort, and is measured again.
        """
        if self.approximate is None or not len(rows):
            return Parts.built(rows, self.n_bits, self.settings, binarizer=self.binarizer, layout=self.layout,
                               provenance=self.provenance, source=source)  # fmt: skip
        approximate = self.approximate.moved(self.approximate.numbers_of(rows_of, self.rows.codes), rows.codes)
        check = approximate.check(rows.codes)
        return self._replace(
            rows=rows, settings=approximate.settings, approximate=approximate, self_check=check, source=source
        )
