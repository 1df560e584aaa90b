"""What `bigr-repr index` prints about an index. Knows no commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from bigr_repr.images.find import escape_path
from bigr_repr.retrieval import KINDS, HammingIndex
from bigr_repr.retrieval.codes.provenance import describe_provenance
from bigr_repr.retrieval.codes.source import DataSource, Drift, listing
from bigr_repr.retrieval.stores.base import StoreIndex

_NOT_FOUND: Final = "{}: cannot be found"


def print_index(index: HammingIndex, folder: Path, *, as_json: bool) -> None:
    """Print everything about one index, one line per fact."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if as_json:
        typer.echo(json.dumps(_record(index, folder, size), indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, value in _facts(index, folder, size):
        table.add_row(heading, Text(value))
    Console().print(table)


def drift_of(index: HammingIndex | StoreIndex, folder: str, *, photographs: bool) -> str | None:
    """A line for each data set that has changed since the index was built; None if none has.

    photographs: whether one that cannot be found counts too, because they are wanted from there. Rows that were removed
    from the index do not count as missing.
    """
    source = index.source if isinstance(index, HammingIndex) else None
    if source is None:
        return None
    lines = []
    for number, where in enumerate(source.folders):
        now = listing(where)
        if not now and photographs:
            lines.append(f"{_NOT_FOUND.format(escape_path(where))}; it may know photographs that are not shown")
        elif (drift := source.drift(number, now)) is not None and drift.files:
            lines.append(_changed(drift, where, folder))
    return "\n".join(lines) or None


def _changed(drift: Drift, where: str, folder: str) -> str:
    stale = f", and {drift.stale:,} that have changed or no longer exist there" if drift.stale else ""
    return (
        f"index holds {drift.held:,} of {drift.rows:,} rows of {escape_path(where)}{stale}; bring it up to date with: "
        f"bigr-repr index update {shlex.quote(escape_path(folder))}"
    )


def _dataset(source: DataSource, number: int, folder: str) -> str:
    """A data set, and how many of its rows the index lacks."""
    where = source.folders[number]
    if not (now := listing(where)):
        return (
            f"{_NOT_FOUND.format(escape_path(where))}, so changes are unknown; if it has moved: bigr-repr index update "
            f"{shlex.quote(escape_path(folder))} NEW-PLACE"
        )
    drift = source.drift(number, now)
    if drift is not None and drift.files:
        return _changed(drift, where, folder)
    if drift is None:
        return escape_path(where)
    return f"{escape_path(where)}, without {drift.rows - drift.held:,} of its {drift.rows:,} rows, which were removed"


def _datasets(index: HammingIndex) -> list[dict[str, Any]]:
    source = index.source
    if source is None:
        return []
    held = [sum(source.parts[i].held for i in source.files_of(n).values()) for n in range(len(source.folders))]
    listed = []
    for number, (folder, rows) in enumerate(zip(source.folders, held, strict=True)):
        now = listing(folder)
        drift = source.drift(number, now) or Drift(rows, rows, 0, 0)
        listed.append({"folder": escape_path(folder), "found": bool(now), **drift._asdict()})
    return listed


def missed_target(index: HammingIndex) -> str | None:
    """A line about a self-check below the target; None if the target was reached or the index is exact."""
    check, target = index.self_check, index.settings.target_recall
    if check is None or check.recall >= target:
        return None
    return (
        f"recall@{check.k} is {check.recall:.3f}, below the target of {target:g}; --kind flat is exact, and fast up to "
        "about a million images"
    )


def warn_of_missed_target(index: HammingIndex) -> None:
    """Print that line on stderr, if there is one."""
    if warning := missed_target(index):
        typer.echo(f"warning: {warning}", err=True)


def _record(index: HammingIndex, folder: Path, size: int) -> dict[str, Any]:
    layout, vectors, binarizer, check = index.layout, index.rows.vectors, index.binarizer, index.self_check
    datasets = _datasets(index)
    return {
        "index": escape_path(str(folder)),
        "images": len(index),
        "shards": None if index.shards is None else len(index.shards),
        "n_bits": index.n_bits,
        "bytes": size,
        "settings": index.settings.to_dict(),
        "binarizer": None if binarizer is None else {"kind": binarizer.kind, "fitted_on": binarizer.fitted_on},
        "grid": None if layout is None else [layout.width, layout.height],
        "columns": index.rows.column_names,
        "vectors": None if vectors is None else {"dtype": vectors.dtype.name, "width": vectors.shape[1]},
        "provenance": index.provenance,
        "dataset": datasets[0] if len(datasets) == 1 else None,
        "datasets": datasets,
        "self_check": None if check is None else check.to_dict(),
        "target_missed": missed_target(index),
    }


def _facts(index: HammingIndex, folder: Path, size: int) -> Iterator[tuple[str, str]]:
    from rich.filesize import decimal

    settings, layout, vectors = index.settings, index.layout, index.rows.vectors
    yield "index", f"{escape_path(str(folder))}, {decimal(size)}"
    yield "images", f"{len(index):,}"
    yield "codes", f"{index.n_bits:,} bits = {index.rows.codes.shape[1]:,} B: {describe_provenance(index.provenance)}"
    if index.binarizer is not None:
        yield "binarizer", f"{index.binarizer.kind}, fitted on {index.binarizer.fitted_on:,} images"
    if (source := index.source) is not None:
        for number in range(len(source.folders)):
            yield "data set", _dataset(source, number, str(folder))
    if index.shards is not None:
        yield "shards", f"{len(index.shards)}"
    yield "kind", f"{settings.kind}: {KINDS[settings.kind]}"
    if settings.effort is not None:
        yield "effort", str(settings.effort)
    yield "self-check", str(index.self_check) if index.self_check else "not needed: exact"
    yield "filters", ", ".join(f"{name} ({kind})" for name, kind in {"path": "text", **index.rows.column_names}.items())
    without = "no vectors kept" if index.binarizer is None else "by the query's vector and the bits: no vectors kept"
    yield "rescoring", without if vectors is None else f"{vectors.shape[1]} features, {vectors.dtype.name}"
    yield (
        "regions",
        "no tokenizer codes" if layout is None else f"a grid of {layout.width} x {layout.height} tokens; decodable",
    )
