"""Reports of suites: Markdown, JSON, and an HTML page that needs nothing else. Knows nothing of measuring."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.reports.plots import plot_bars, plot_sweeps
from bigr_repr.system.files import replacing

__all__ = ["markdown_table", "write_reports"]

RunRecord = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; text-align: right; }
td { white-space: nowrap; }
th { border-bottom: 1px solid currentColor; } td:first-child, th:first-child { text-align: left; }
tr.best td { font-weight: 600; } img { max-width: 100%; background: #fff; } small, figcaption { opacity: .75; }
.scroll { overflow-x: auto; } figure { margin: 1.5rem 0; } code { overflow-wrap: anywhere; }
"""


def write_reports(name: str, records: Sequence[RunRecord], out: PathLike) -> list[Path]:
    """Write NAME.json, NAME.md, NAME.html and the plots beside them; returns their paths, the page last."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"bars": folder / f"{name}-accuracy.png"}
    plot_bars([_chosen(group) for group in _groups(records)], plots["bars"])
    if any(len(group) > 1 for group in _groups(records)):
        plots["layers"] = folder / f"{name}-layers.png"
        plot_sweeps(records, plots["layers"])
    texts = {
        f"{name}.json": json.dumps({"name": name, "rows": list(records)}, indent=1) + "\n",
        f"{name}.md": _markdown(name, records, [path.name for path in plots.values()]),
        f"{name}.html": _page(name, records, plots),
    }
    for file, text in texts.items():
        with replacing(folder / file) as handle:
            handle.write(text.encode())
    return [*plots.values(), *(folder / file for file in texts)]


def markdown_table(records: Sequence[RunRecord]) -> str:
    """A line a representation, at the layer that the held-out part chose; columns for each data set."""
    return _markdown_lines(*_table(records))


# ---- what is shown


def _groups(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Records of one representation on one data set each."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record["dataset"], record["representation"]), []).append(record)
    return list(groups.values())


def _chosen(group: Sequence[RunRecord]) -> RunRecord:
    """Of the layers of a sweep, the one whose probe was best on the held-out part of the training set."""
    return max(group, key=lambda record: record["linear_probe"]["held_out_top1"] or 0.0)


def _table(records: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    chosen = {(group[0]["dataset"], group[0]["representation"]): _chosen(group) for group in _groups(records)}
    k = max(records[0]["knn"]["top1"], key=lambda text: -int(text))
    head = ["representation"]
    for dataset in datasets:
        head += [f"{dataset}: layer", "probe ± 95 %", "top-5", f"{k}-NN"]
    lines = []
    for name in names:
        cells = [name]
        for dataset in datasets:
            record = chosen[dataset, name]
            probe = record["linear_probe"]
            low, high = probe["interval"]
            layer = "" if record["layer"] is None else str(record["layer"])
            cells += [layer, f"{probe['top1']:.1f} ± {(high - low) / 2:.1f}", f"{probe['top5']:.1f}"]
            cells.append(f"{record['knn']['top1'][k]:.1f}")
        lines.append(cells)
    return head, lines


def _layers(records: Sequence[RunRecord]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, lines) of every sweep."""
    found = []
    for group in _groups(records):
        if len(group) > 1:
            head = ["layer", "probe", "95 %", "top-5", *(f"{k}-NN" for k in group[0]["knn"]["top1"])]
            lines = []
            for record in group:
                probe, (low, high) = record["linear_probe"], record["linear_probe"]["interval"]
                mark = " ←" if record is _chosen(group) else ""
                cells = [f"{record['layer']}{mark}", f"{probe['top1']:.2f}", f"{low:.1f}..{high:.1f}"]
                cells += [f"{probe['top5']:.2f}", *(f"{top1:.2f}" for top1 in record["knn"]["top1"].values())]
                lines.append(cells)
            found.append((f"{group[0]['representation']} on {group[0]['dataset']}", head, lines))
    return found


def _origins(records: Sequence[RunRecord]) -> list[str]:
    """Protocols, data, models and machines, each once, as sentences."""
    said: dict[str, None] = {}
    for record in records:
        probe, knn, seeds = record["linear_probe"], record["knn"], record["linear_probe"]["seeds"]
        said[f"{record['dataset']}: {_size(record['train'])} to train on, {_size(record['test'])} to test on."] = None
        if record["test_images_in_train"]:
            said[f"{record['dataset']}: {record['test_images_in_train']} test images are training images too."] = None
        said[f"Linear probe, {record['dataset']}: {probe['protocol']}; seeds {', '.join(map(str, seeds))}."] = None
        said[f"Neighbors: {knn['protocol']}."] = None
        model = record["model"]
        sha256 = model["model_sha256"]
        if sha256:
            drawn = f", weights drawn with seed {model['weights_seed']}" if "weights_seed" in model else ""
            said[f"{record['representation']}: {model['model']}, SHA-256 {sha256}{drawn}."] = None
    for chosen in map(_chosen, _groups(records)):
        if seeds := chosen["linear_probe"]["seed_interval"]:
            what = f"{chosen['representation']} on {chosen['dataset']}"
            said[f"{what}: {seeds[0]:.1f}..{seeds[1]:.1f} is 95 % of the mean over seeds, by Student's t."] = None
    for record in records:
        machine, version = record["machine"], record["version"]
        said[
            f"Measured on {machine['cores']} cores of {machine['cpu']}, GPU {machine['gpu'] or 'none'}, torch "
            f"{machine['torch']}, bigr-repr {version}."
        ] = None
    said["The layer of each line is the one whose probe was best on a held-out part of the training images."] = None
    said["95 %: an interval for the probe by resampling the test images."] = None
    return list(said)


def _size(side: RunRecord) -> str:
    drawn = f" of {side['of']:,} ({side['drawn']})" if "of" in side else ""
    split = f" ({side['split']})" if "split" in side else ""
    return f"{side['images']:,}{drawn}{split} images of {side['classes']} classes"


# ---- files


def _markdown(name: str, records: Sequence[RunRecord], plots: Sequence[str]) -> str:
    parts = [f"# {name}", markdown_table(records), *(f"![{plot}]({plot})" for plot in plots)]
    for title, head, lines in _layers(records):
        parts += [f"## {title}", _markdown_lines(head, lines)]
    parts += ["## How these figures came about", "\n".join(f"- {sentence}" for sentence in _origins(records))]
    return "\n\n".join(parts) + "\n"


def _markdown_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (head, *lines))
    first, *rest = (f"| {' | '.join(line)} |" for line in escaped)
    return "\n".join([first, f"|{'|'.join(rule)}|", *rest])


def _page(name: str, records: Sequence[RunRecord], plots: Mapping[str, Path]) -> str:
    parts = [f"<h1>{html.escape(name)}</h1>", _html_table(*_table(records))]
    titles = {"bars": "Linear probe, at the chosen layer, with 95 % intervals", "layers": "Every block"}
    for kind, path in plots.items():
        data = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(titles[kind])
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    for title, head, lines in _layers(records):
        body = _html_table(head, lines)
        parts.append(f"<details><summary>{html.escape(title)}</summary>{body}</details>")
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in _origins(records))
    parts.append(f"<h2>How these figures came about</h2><small><ul>{items}</ul></small>")
    meta = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(name)}</title>'
    )
    return (
        f"<!doctype html><html lang=en><head>{meta}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _html_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr{' class=best' if '←' in line[0] else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
