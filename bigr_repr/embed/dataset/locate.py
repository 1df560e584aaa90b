"""Finds the input that a row of a data set was made from. Independent of pictures."""

from __future__ import annotations

import pyarrow.parquet as pq

from bigr_repr._typing import PathLike
from bigr_repr.embed.dataset.damage import PART
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import Ledger
from bigr_repr.embed.dataset.plan import RUN_FOLDER, Plan, open_plan
from bigr_repr.embed.dataset.schema import columns_of
from bigr_repr.images.parquet import Columns
from bigr_repr.system.object_store import as_place, readable


def read_thumbnail(folder: PathLike, part: str, row: int, path: str) -> bytes | None:
    """The thumbnail stored for a row of the data set's file `part`; None if missing or if the path differs."""
    with pq.ParquetFile(readable(as_place(folder) / part)) as parquet:
        if "image" not in parquet.schema_arrow.names or not 0 <= row < parquet.metadata.num_rows:
            return None
        picture = parquet.read(["image"]).column("image")[row].as_py()
        content: bytes | None = picture["bytes"] if picture["path"] == path else None
        return content


class RowLocator:
    """Finds the inputs of one data set's rows.

    Raises FileNotFoundError for a folder without a run's record, for example if only the Parquet files were copied.
    """

    def __init__(self, folder: PathLike) -> None:
        place = as_place(folder)
        plan = open_plan(place / RUN_FOLDER)
        if plan is None:
            raise FileNotFoundError(f"{place}: no record of how it was embedded")
        self._plan: Plan = plan
        self._ledger = Ledger(place, place / RUN_FOLDER / "units", plan=plan)

    @property
    def columns(self) -> Columns:
        """The columns of the Parquet files that the data set was made from."""
        return columns_of(self._plan.provenance)

    def entry(self, part: str, row: int) -> Entry | None:
        """The input of a row of the file `part`; None if the record does not tell."""
        match = PART.fullmatch(part)
        unit = int(match[1]) if match else -1
        if not 0 <= unit < self._plan.units or (record := self._ledger.sealed(unit)) is None:
            return None
        without = {failure.place for failure in record.failures} | self._plan.duplicates(unit).keys()
        without -= set(record.released) - {failure.place for failure in record.failures}
        places = [place for place in range(self._plan.size(unit)) if place not in without]
        return self._plan.entries(unit)[places[row]] if 0 <= row < len(places) else None
