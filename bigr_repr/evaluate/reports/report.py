"""Reports of suites: Markdown, JSON, and a self-contained HTML page. Knows nothing of measuring."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.reports.plots import plot_bars, plot_sweeps
from bigr_repr.evaluate.reports.tables import as_csv, as_latex
from bigr_repr.evaluate.runs.features import how_read
from bigr_repr.system.files import replacing
from bigr_repr.system.pages import data_url, render

__all__ = ["DatasetTable", "csv_table", "latex_table", "markdown_table", "seen_note", "tables_of", "write_reports"]

RunRecord = Mapping[str, Any]
_CAPTIONS: Final = {"bars": "Linear probe, at the chosen layer, with 95 % intervals", "layers": "Every block"}
_SEEN: Final = "†"


class DatasetTable(NamedTuple):
    """Headings, and lines of texts under them."""

    title: str
    head: list[str]
    lines: list[list[str]]


def write_reports(name: str, records: Sequence[RunRecord], out: PathLike) -> list[Path]:
    """Write NAME.json, .csv, .tex, .md, .html and the plots next to them; returns their paths, the page last."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"bars": folder / f"{name}-accuracy.png"}
    plot_bars([_chosen(group) for group in _groups(records)], plots["bars"])
    if any(len(group) > 1 for group in _groups(records)):
        plots["layers"] = folder / f"{name}-layers.png"
        plot_sweeps(records, plots["layers"])
    texts = {
        f"{name}.json": json.dumps({"name": name, "rows": list(records)}, indent=1) + "\n",
        f"{name}.csv": csv_table(records),
        f"{name}.tex": latex_table(records),
        f"{name}.md": _markdown(name, records, [path.name for path in plots.values()]),
        f"{name}.html": _page(name, records, plots),
    }
    for file, text in texts.items():
        with replacing(folder / file) as handle:
            handle.write(text.encode())
    return [*plots.values(), *(folder / file for file in texts)]


def markdown_table(records: Sequence[RunRecord]) -> str:
    """A line for each data set and representation, at the layer chosen on the held-out part."""
    tables = tables_of(records)
    lines = [[table.title, *line] for table in tables for line in table.lines]
    text = _markdown_lines(["data set", *tables[0].head], lines, names=2)
    return "\n\n".join([text, *seen_note(tables)])


def seen_note(tables: Sequence[DatasetTable]) -> list[str]:
    """What the mark of a representation means; empty if none has it."""
    seen = any(_SEEN in line[0] for table in tables for line in table.lines)
    return [f"{_SEEN} trained on images of this data set, as its training record says"] if seen else []


def csv_table(records: Sequence[RunRecord]) -> str:
    """The same lines for spreadsheets: accuracies in percent with all their decimals, and both ends of the interval."""
    k = _nearest(records)
    lines: list[list[Any]] = [
        ["dataset", "representation", "layer", "top1", "low", "high", "top5", f"knn{k}", "mean_per_class"]
    ]
    for chosen in map(_chosen, _groups(records)):
        probe = chosen["linear_probe"]
        numbers = [probe["top1"], *probe["interval"], probe["top5"], chosen["knn"]["top1"][k], probe["mean_per_class"]]
        lines.append([chosen["dataset"], chosen["representation"], _layer(chosen), *numbers])
    return as_csv(lines)


def latex_table(records: Sequence[RunRecord]) -> str:
    """The same lines as a LaTeX tabular, for the package booktabs."""
    tables = tables_of(records)
    lines = [["data set", *tables[0].head], *([table.title, *line] for table in tables for line in table.lines)]
    return as_latex(lines, names=2)


# ---- what is shown


def _nearest(records: Sequence[RunRecord]) -> str:
    """The smallest number of neighbors, which is not tuned on the test images."""
    return str(max(records[0]["knn"]["top1"], key=lambda text: -int(text)))


def _groups(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Records of one representation on one data set each."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["representation"]), []).append(record)
    return list(groups.values())


def _chosen(group: Sequence[RunRecord]) -> RunRecord:
    """The layer of a sweep whose probe was best on the held-out part of the training set."""
    return max(group, key=lambda record: record["linear_probe"]["held_out_top1"] or 0.0)


def tables_of(records: Sequence[RunRecord]) -> list[DatasetTable]:
    """One for each data set, with a line per representation."""
    k = _nearest(records)
    head = ["representation", "layer", "probe ± 95 %", "top-5", f"{k}-NN"]
    found: dict[str, DatasetTable] = {}
    for chosen in map(_chosen, _groups(records)):
        probe, (low, high) = chosen["linear_probe"], chosen["linear_probe"]["interval"]
        line = [
            chosen["representation"] + (f" {_SEEN}" if chosen.get("trained_on") else ""),
            _layer(chosen),
            f"{probe['top1']:.1f} ± {(high - low) / 2:.1f}",
            f"{probe['top5']:.1f}",
            f"{chosen['knn']['top1'][k]:.1f}",
        ]
        found.setdefault(chosen["dataset"], DatasetTable(chosen["dataset"], head, [])).lines.append(line)
    return list(found.values())


def _layer(record: RunRecord) -> str:
    """The block, or several concatenated ones."""
    if record["layer"] is not None:
        return str(record["layer"])
    return "+".join(re.findall(r"layer-(\d+)", record["features"])) if "+" in record["features"] else ""


def _sweeps(records: Sequence[RunRecord]) -> list[DatasetTable]:
    """Tables for every representation that was measured at several layers."""
    found = []
    for group in _groups(records):
        if len(group) > 1:
            head = ["layer", "probe", "95 %", "top-5", *(f"{k}-NN" for k in group[0]["knn"]["top1"])]
            lines = []
            for record in group:
                probe, (low, high) = record["linear_probe"], record["linear_probe"]["interval"]
                mark = " ←" if record is _chosen(group) else ""
                cells = [f"{_layer(record)}{mark}", f"{probe['top1']:.2f}", f"{low:.1f}..{high:.1f}"]
                cells += [f"{probe['top5']:.2f}", *(f"{top1:.2f}" for top1 in record["knn"]["top1"].values())]
                lines.append(cells)
            found.append(DatasetTable(f"{group[0]['representation']} on {group[0]['dataset']}", head, lines))
    return found


def _provenance(records: Sequence[RunRecord]) -> list[str]:
    """Protocols, data, models and machines, each once, as sentences."""
    said = [sentence for record in records for sentence in _of_record(record)]
    said += [sentence for chosen in map(_chosen, _groups(records)) for sentence in _of_choice(chosen)]
    for record in records:
        machine, version = record["machine"], record["version"]
        said.append(
            f"Measured on {machine['cores']} cores of {machine['cpu']}, GPU {machine['gpu'] or 'none'}, torch "
            f"{machine['torch']}, bigr-repr {version}."
        )
    said.append("The layer of each line is the one whose probe was best on a held-out part of the training images.")
    said.append("95 %: an interval for the probe by resampling the test images.")
    return list(dict.fromkeys(said))


def _of_record(record: RunRecord) -> list[str]:
    """Sentences on data, protocols and model."""
    data, probe, model = record["dataset"], record["linear_probe"], record["model"]
    said = [f"{data}: {_size(record['train'])} to train on, {_size(record['test'])} to test on."]
    if record["test_images_in_train"]:
        said.append(f"{data}: {record['test_images_in_train']} test images are training images too.")
    if record.get("trained_on"):
        said.append(f"{_SEEN} {record['representation']} on {data}: {record['trained_on']}.")
    said.append(f"Linear probe, {data}: {probe['protocol']}; seeds {', '.join(map(str, probe['seeds']))}.")
    said.append(f"Neighbors: {record['knn']['protocol']}.")
    if model["model_sha256"]:
        drawn = f", weights drawn with seed {model['weights_seed']}" if "weights_seed" in model else ""
        read = f", {how}" if (how := how_read(record)) else ""
        said.append(f"{record['representation']}: {model['model']}, SHA-256 {model['model_sha256']}{drawn}{read}.")
    return said


def _of_choice(chosen: RunRecord) -> list[str]:
    """Notes on one line's settings."""
    what = f"{chosen['representation']} on {chosen['dataset']}"
    said = [f"{what}: {edge}; a better one may lie beyond." for edge in chosen["linear_probe"].get("edges", ())]
    if seeds := chosen["linear_probe"]["seed_interval"]:
        said.append(f"{what}: {seeds[0]:.1f}..{seeds[1]:.1f} is 95 % of the mean over seeds, by Student's t.")
    if noted := chosen.get("layer_chosen_by"):
        said.append(f"{what}: layer {noted['layer']} is that of a sweep over {noted['images']:,} images.")
    return said


def _size(side: RunRecord) -> str:
    drawn = f" of {side['of']:,} ({side['drawn']})" if "of" in side else ""
    split = f" ({side['split']})" if "split" in side else ""
    return f"{side['images']:,}{drawn}{split} images of {side['classes']} classes"


# ---- files


def _markdown(name: str, records: Sequence[RunRecord], plots: Sequence[str]) -> str:
    parts = [f"# {name}", markdown_table(records), *(f"![{plot}]({plot})" for plot in plots)]
    for title, head, lines in _sweeps(records):
        parts += [f"## {title}", _markdown_lines(head, lines)]
    parts += ["## How this was measured", "\n".join(f"- {sentence}" for sentence in _provenance(records))]
    return "\n\n".join(parts) + "\n"


def _markdown_lines(head: Sequence[str], lines: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """A table whose first `names` columns are text, the others numbers."""
    rule = [*(["---"] * names), *("---:" for _ in head[names:])]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (head, *lines))
    first, *rest = (f"| {' | '.join(line)} |" for line in escaped)
    return "\n".join([first, f"|{'|'.join(rule)}|", *rest])


def _page(name: str, records: Sequence[RunRecord], plots: Mapping[str, Path]) -> str:
    figures = [(_CAPTIONS[kind], data_url(path.read_bytes(), "image/png")) for kind, path in plots.items()]
    return render(
        Path(__file__).with_name("report.html"),
        name=name, tables=tables_of(records), figures=figures, sweeps=_sweeps(records), provenance=_provenance(records),
    )  # fmt: skip
