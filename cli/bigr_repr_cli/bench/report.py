"""Results of benchmarks on stdout: a table for terminals of 80 columns and more, or JSON. Knows no commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bigr_repr.evaluate.metrics.label_retrieval import RetrievalRow
    from bigr_repr.evaluate.runs.bench import BenchRow
    from bigr_repr.evaluate.runs.extraction import BenchFeatures
    from bigr_repr.evaluate.runs.few_shot import FewShotRow, StructureRow
    from bigr_repr.evaluate.runs.multi_label import MultiLabelRow
    from bigr_repr.evaluate.runs.segment import SegmentRow


def print_rows(rows: Sequence[BenchRow], *, as_json: bool, best: BenchRow | None = None) -> None:
    """One line per row and the protocol below, or all records. best: the row to point out."""
    if as_json:
        typer.echo(json.dumps({"rows": [row.record() for row in rows], "best": best and best.view.layer}, indent=2))
        return
    first = rows[0]
    typer.echo(
        f"{first.representation} on {first.dataset}: {_size(first.facts, 'train')}, {_size(first.facts, 'test')}"
    )
    Console().print(_neighbors_table(rows) if first.probe is None else _probe_table(rows, best))
    for found in (first.probe, first.knn):
        if found:
            typer.echo(found.protocol)
    typer.echo("95 %: an interval of top-1 by resampling the test images")
    if best and len(rows) > 1:
        typer.echo(f"← {best.view.where} (best) on the held-out part of the training images")
    for row in rows:
        if row.probe and abs(row.probe.mean_per_class - row.probe.top1) >= 0.005:
            typer.echo(f"{row.view.where}: {row.probe.mean_per_class:.2f} is the mean over classes of top-1")
    for sentence in [*_of_seeds([best] if best else rows), *_cautions(rows)]:
        typer.echo(sentence)


def _of_seeds(rows: Sequence[BenchRow]) -> Iterator[str]:
    """What several seeds say of chance, if anything."""
    for row in rows:
        if row.probe is None or len(row.probe.seeds) < 2:
            continue
        seeds = f"seeds {', '.join(map(str, row.probe.seeds))}"
        if row.probe.seed_interval is None:
            yield f"{row.view.where}: {seeds} gave the same head; chance is only in the test images"
        else:
            interval = _interval(row.probe.seed_interval)
            yield f"{row.view.where}: {interval} is 95 % of the mean over {seeds}, by Student's t"


def _cautions(rows: Sequence[BenchRow]) -> Iterator[str]:
    """What a reader must know: the model has seen this data, a choice is at the end of its grid, where best is from."""
    facts = rows[0].facts
    if facts["trained_on"]:
        yield f"note: {rows[0].representation} was {facts['trained_on']}"
    if noted := facts.get("layer_chosen_by"):
        yield f"best: layer {noted['layer']}, of a sweep over {noted['images']:,} images of {noted['train']}"
    for row in rows:
        for edge in row.probe.edges if row.probe else ():
            yield f"note: {row.view.where}: {edge}"


def _probe_table(rows: Sequence[BenchRow], best: BenchRow | None) -> Table:
    """One line per layer: the probe, then top-1 of every number of neighbors."""
    names = {
        name for row in rows if row.probe for found in row.probe.settings for name, value in found.items() if value
    }
    headings = ["top-1", "top-5", "95 %", f"chosen {'/'.join(sorted(names))}".replace("_", " ")]
    headings += [f"{k}-NN" for k in (rows[0].knn.top1 if rows[0].knn else ())]
    table = _table("features", headings)
    for row in rows:
        assert row.probe is not None
        chosen = sorted({f"{value:g}" for found in row.probe.settings for value in found.values()} - {"0"})
        cells = [f"{row.probe.top1:.2f}", f"{row.probe.top5:.2f}", _interval(row.probe.interval)]
        cells += ["/".join(chosen), *(f"{top1:.2f}" for top1 in (row.knn.top1.values() if row.knn else ()))]
        table.add_row(row.view.where + (" ←" if row is best and len(rows) > 1 else ""), *cells)
    return table


def _neighbors_table(rows: Sequence[BenchRow]) -> Table:
    """One line per layer and number of neighbors."""
    table = _table("features", ["k", "top-1", "top-5", "95 %"])
    for row in rows:
        assert row.knn is not None
        for k, top1 in row.knn.top1.items():
            cells = [f"{top1:.2f}", f"{row.knn.top5[k]:.2f}", _interval(row.knn.interval[k])]
            table.add_row(row.view.where, str(k), *cells)
    return table


def print_table(
    row: FewShotRow | StructureRow | MultiLabelRow | SegmentRow, dataset: str, heads: list[str], lines: list[list[str]]
) -> None:
    """Lines of cells under their headings, and what the row says of its model."""
    typer.echo(f"{row.representation} on {dataset}: {_size(row.facts, 'test')}")
    table = _table(heads[0], heads[1:])
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if row.facts["trained_on"]:
        typer.echo(f"note: {row.representation} was {row.facts['trained_on']}")


def _table(first: str, headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.1f}..{bounds[1]:.1f}"


def print_retrieval(rows: Sequence[RetrievalRow], features: BenchFeatures) -> None:
    """One line per kind of code, and what was measured below."""
    view, first = next(iter(features.train)), rows[0]
    typer.echo(
        f"{features.representation}, {view.where}, on {features.data.name}: "
        f"{_size(features.facts, 'test')} as queries, {_size(features.facts, 'train')} as database"
    )
    table = _table(
        "codes", ["mAP@all", f"mAP@{first.depth}", f"P@{first.precision_at}", f"recall@{first.recall_at}", "of float"]
    )
    for row in rows:
        numbers = (row.map_at_all, row.map_at_depth, row.precision, row.recall_of_float, row.share_of_float)
        table.add_row(row.name, *(f"{number:.1f}" for number in numbers))
    Console().print(table)
    typer.echo(
        f"percent; mAP over the relevant in the database; equal distances: mean over their orders; recall: of the "
        f"{first.recall_at} nearest in the first row; of float: share of its mAP@{first.depth}"
    )


def _size(facts: Mapping[str, Any], side: str) -> str:
    record = facts[side]
    of = f" of {record['of']:,}" if "of" in record else ""
    return f"{record['images']:,}{of} {'training' if side == 'train' else 'test'} images"
