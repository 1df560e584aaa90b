"""Prints benchmark results: a table for terminals of 80 columns, JSON, CSV or LaTeX. Knows no commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bigr_repr_cli.bench.options import Format

if TYPE_CHECKING:
    from bigr_repr.evaluate.metrics.label_retrieval import RetrievalRow
    from bigr_repr.evaluate.runs.bench import BenchRow
    from bigr_repr.evaluate.runs.extraction import BenchFeatures
    from bigr_repr.evaluate.runs.few_shot import FewShotRow, StructureRow
    from bigr_repr.evaluate.runs.multi_label import MultiLabelRow
    from bigr_repr.evaluate.runs.segment import SegmentRow

Cell = str | float | tuple[float, float] | None


class Sheet(NamedTuple):
    """A table. columns: headings, each with its number format. best: the line to highlight, if any."""

    columns: Mapping[str, str]
    lines: Sequence[Sequence[Cell]]
    best: int | None = None

    def texts(self, between: str) -> list[list[str]]:
        """Cells formatted for people, under their headings. between: separator of the ends of an interval."""
        specs = list(self.columns.values())
        return [
            list(self.columns),
            *([_text(cell, spec, between) for cell, spec in zip(line, specs, strict=True)] for line in self.lines),
        ]

    def values(self) -> list[list[Any]]:
        """Cells with all decimals, under their headings; an interval takes two columns."""
        wide = [any(isinstance(line[place], tuple) for line in self.lines) for place in range(len(self.columns))]
        heads = [
            [f"{name} low", f"{name} high"] if two else [name] for name, two in zip(self.columns, wide, strict=True)
        ]
        found = [[head for pair in heads for head in pair]]
        for line in self.lines:
            pairs = [_values(cell, two) for cell, two in zip(line, wide, strict=True)]
            found.append([value for pair in pairs for value in pair])
        return found


def _text(cell: Cell, spec: str, between: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, tuple):
        return between.join(f"{end:{spec or '.1f'}}" for end in cell)
    return cell if isinstance(cell, str) else f"{cell:{spec}}"


def _values(cell: Cell, wide: bool) -> list[Any]:
    ends = cell if isinstance(cell, tuple) else (cell, None)
    return ["" if end is None else end for end in ends[: 1 + wide]]


def emit(form: Format, sheet: Sheet, record: Mapping[str, Any], *, head: str = "", notes: Iterable[str] = ()) -> None:
    """Print a result. record: the JSON output. head, notes: lines above and below the terminal's table."""
    if form == Format.json:
        typer.echo(json.dumps(record, indent=2))
    elif form == Format.table:
        typer.echo(head)
        Console().print(_drawn(sheet))
        for note in notes:
            typer.echo(note)
    else:
        from bigr_repr.evaluate.reports.tables import as_csv, as_latex

        text = as_csv(sheet.values()) if form == Format.csv else as_latex(sheet.texts("--"))
        typer.echo(text, nl=False)


def _drawn(sheet: Sheet) -> Table:
    """The table; `Text` keeps brackets in names, which rich would take for its markup."""
    heads, *lines = ([Text(cell) for cell in line] for line in sheet.texts(".."))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(heads[0], overflow="fold")  # wraps where the table is too wide, so that numbers stay whole
    for heading in heads[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, (first, *cells) in enumerate(lines):
        table.add_row(first.append(" ←" if number == sheet.best else ""), *cells)
    return table


# ---- probes and neighbors


def print_rows(rows: Sequence[BenchRow], form: Format, *, best: BenchRow | None = None) -> None:
    """One line per row and the protocol below, or all records. best: the row to highlight."""
    first = rows[0]
    wide = form in (Format.csv, Format.latex)
    sheet = _neighbors_sheet(rows) if first.probe is None else _probe_sheet(rows, best, wide=wide)
    record = {"rows": [row.record() for row in rows], "best": best and best.view.layer}
    head = f"{first.representation} on {first.dataset}: {_size(first.facts, 'train')}, {_size(first.facts, 'test')}"
    emit(form, sheet, record, head=head, notes=_notes(rows, best))


def _notes(rows: Sequence[BenchRow], best: BenchRow | None) -> Iterator[str]:
    for found in (rows[0].probe, rows[0].knn):
        if found:
            yield found.protocol
    yield "95 %: bootstrap interval of top-1 over the test images"
    if best and len(rows) > 1:
        yield f"← {best.view.where} (best) on the held-out part of the training images"
    for row in rows:
        if row.probe and abs(row.probe.mean_per_class - row.probe.top1) >= 0.005:
            yield f"{row.view.where}: {row.probe.mean_per_class:.2f} is the mean over classes of top-1"
    yield from _of_seeds([best] if best else rows)
    yield from _cautions(rows)


def _of_seeds(rows: Sequence[BenchRow]) -> Iterator[str]:
    """What several seeds say about random variation, if anything."""
    for row in rows:
        if row.probe is None or len(row.probe.seeds) < 2:
            continue
        seeds = f"seeds {', '.join(map(str, row.probe.seeds))}"
        if row.probe.seed_interval is None:
            yield f"{row.view.where}: {seeds} gave the same accuracy; only the test images vary"
        else:
            interval = _text(row.probe.seed_interval, "", "..")
            yield f"{row.view.where}: {interval} is the 95 % interval of the mean over {seeds}, by Student's t"


def _cautions(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Caveats: the model has seen this data, a value lies at the edge of its grid, where "best" comes from."""
    facts = rows[0].facts
    yield from _origin(rows[0].representation, facts)
    if noted := facts.get("layer_chosen_by"):
        yield f"best: layer {noted['layer']}, of a sweep over {noted['images']:,} images of {noted['train']}"
    for row in rows:
        for edge in row.probe.edges if row.probe else ():
            yield f"note: {row.view.where}: {edge}"


def _probe_sheet(rows: Sequence[BenchRow], best: BenchRow | None, *, wide: bool) -> Sheet:
    """One line per layer: the probe, then top-1 of every number of neighbors. wide: with the mean over classes, which
    a terminal has below the table.
    """
    names = {
        name for row in rows if row.probe for found in row.probe.settings for name, value in found.items() if value
    }
    chosen = f"chosen {'/'.join(sorted(names))}".replace("_", " ")
    columns = {"features": "", "top-1": ".2f", "top-5": ".2f", "95 %": "", chosen: ""}
    columns |= {"mean per class": ".2f"} if wide else {}
    columns |= {f"{k}-NN": ".2f" for k in (rows[0].knn.top1 if rows[0].knn else ())}
    lines: list[list[Cell]] = []
    for row in rows:
        assert row.probe is not None
        values = sorted({f"{value:g}" for found in row.probe.settings for value in found.values()} - {"0"})
        cells: list[Cell] = [row.probe.top1, row.probe.top5, row.probe.interval, "/".join(values)]
        cells += [row.probe.mean_per_class] if wide else []
        lines.append([row.view.where, *cells, *(row.knn.top1.values() if row.knn else ())])
    return Sheet(columns, lines, rows.index(best) if best is not None and len(rows) > 1 else None)


def _neighbors_sheet(rows: Sequence[BenchRow]) -> Sheet:
    """One line per layer and number of neighbors."""
    lines: list[list[Cell]] = []
    for row in rows:
        assert row.knn is not None
        for k, top1 in row.knn.top1.items():
            lines.append([row.view.where, k, top1, row.knn.top5[k], row.knn.interval[k]])
    return Sheet({"features": "", "k": "", "top-1": ".2f", "top-5": ".2f", "95 %": ""}, lines)


# ---- other measures


def print_few_shot(rows: Sequence[FewShotRow], dataset: str, form: Format) -> None:
    """One line per layer and number of shots."""
    columns = {"features": "", "shots": "", "top-1": ".2f", "95 %": "", "mean per class": ".2f"}
    lines: list[list[Cell]] = [[row.view.where, row.shots, row.top1, row.interval, row.mean_per_class] for row in rows]
    draws = len(rows[0].top1_by_draw)
    protocol = re.sub(r"; (re)?fitted on .*", "", rows[0].protocol)  # the table says on how many images
    note = f"means over {draws} draws; 95 % interval of the mean by Student's t; {protocol}"
    _emit_measured(form, Sheet(columns, lines), rows, dataset, [note])


def print_clusters(rows: Sequence[StructureRow], dataset: str, form: Format) -> None:
    """One line per layer."""
    columns = {"features": "", "NMI": ".3f", "ARI": ".3f", "accuracy": ".1f", "RankMe": ".1f"}
    columns |= {"alignment": ".3f", "uniformity": ".3f"}
    lines: list[list[Cell]] = []
    for row in rows:
        found = row.found
        numbers: list[Cell] = [found.nmi, found.ari, found.accuracy, found.rank_me, found.alignment, found.uniformity]
        lines.append([row.view.where, *numbers])
    note = f"{rows[0].found.images:,} test images; {rows[0].found.protocol}"
    _emit_measured(form, Sheet(columns, lines), rows, dataset, [note])


def print_multi_label(rows: Sequence[MultiLabelRow], form: Format) -> None:
    """One line per layer."""
    columns = {"features": "", "mAP": ".2f", "95 %": "", "chosen C": "g"}
    lines: list[list[Cell]] = [[row.view.where, row.probe.map, row.probe.interval, row.probe.C] for row in rows]
    _emit_measured(form, Sheet(columns, lines), rows, rows[0].facts["train"]["source"], _of_penalty(rows))


def print_segment(rows: Sequence[SegmentRow], dataset: str, form: Format) -> None:
    """One line per layer; below, the classes of the last one."""
    columns = {"features": "", "mIoU": ".2f", "95 %": "", "pixels": ".2f", "chosen C": "g"}
    lines: list[list[Cell]] = [
        [row.view.where, row.probe.miou, row.probe.interval, row.probe.pixel_accuracy, row.probe.C] for row in rows
    ]
    names, shares = rows[0].class_names, rows[-1].probe.iou_by_class
    classes = [f"  {names[name] if name < len(names) else name}: {share:.1f}" for name, share in shares.items()]
    _emit_measured(form, Sheet(columns, lines), rows, dataset, [*classes, *_of_penalty(rows)])


def _of_penalty(rows: Sequence[MultiLabelRow] | Sequence[SegmentRow]) -> Iterator[str]:
    yield rows[0].probe.protocol
    for row in rows:
        if row.probe.edge:
            yield f"note: {row.view.where}: {row.probe.edge}; a better one may lie beyond"


def _emit_measured(
    form: Format,
    sheet: Sheet,
    rows: Sequence[FewShotRow] | Sequence[StructureRow] | Sequence[MultiLabelRow] | Sequence[SegmentRow],
    dataset: str,
    notes: Iterable[str],
) -> None:
    first = rows[0]
    head = f"{first.representation} on {dataset}: {_size(first.facts, 'test')}"
    emit(
        form,
        sheet,
        {"rows": [row.record() for row in rows]} | first.facts,
        head=head,
        notes=[*_origin(first.representation, first.facts), *notes],
    )


def print_retrieval(rows: Sequence[RetrievalRow], features: BenchFeatures, form: Format) -> None:
    """One line per kind of code, and what was measured below."""
    view, first = next(iter(features.train)), rows[0]
    names = ["mAP@all", f"mAP@{first.depth}", f"P@{first.precision_at}", f"recall@{first.recall_at}", "of float"]
    lines: list[list[Cell]] = [
        [row.name, row.map_at_all, row.map_at_depth, row.precision, row.recall_of_float, row.share_of_float]
        for row in rows
    ]
    record = {"dataset": features.data.name, "representation": features.representation, "layer": view.layer}
    emit(
        form,
        Sheet({"codes": "", **dict.fromkeys(names, ".1f")}, lines),
        record | {"rows": [row.record() for row in rows]} | features.facts,
        head=f"{features.representation}, {view.where}, on {features.data.name}: "
        f"{_size(features.facts, 'test')} as queries, {_size(features.facts, 'train')} as database",
        notes=[
            "percent; mAP over the relevant images in the database, averaged over orders of ties; recall: of the "
            f"{first.recall_at} nearest in the first row; of float: share of its mAP@{first.depth}",
            *_origin(features.representation, features.facts),
        ],
    )


def _origin(representation: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Non-default settings of how features were extracted, and whether the model has seen this data."""
    from bigr_repr.evaluate.runs.features import how_read

    if found := how_read(facts):
        yield f"features: {found}"
    if facts["trained_on"]:
        yield f"note: {representation} was {facts['trained_on']}"


def _size(facts: Mapping[str, Any], side: str) -> str:
    record = facts[side]
    of = f" of {record['of']:,}" if "of" in record else ""
    return f"{record['images']:,}{of} {'training' if side == 'train' else 'test'} images"
