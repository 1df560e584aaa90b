"""`bigr-repr adapt`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.train.adapt_recipe import AdaptRecipe
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Json, Model
from bigr_repr_cli.progress import bench_progress
from bigr_repr_cli.train.options import Images, ParquetColumns, TrainPrecision

if TYPE_CHECKING:
    from bigr_repr.evaluate.reports.adapted import ClassShown
    from bigr_repr.train.adapt_job import OnProgress
    from bigr_repr.train.adaptation import Adapted

_MOST_CLASSES = 12  # shown
_RECORD = "adapt.json"


@flattened
def command(
    data: Images,
    out: Annotated[Path, typer.Option(help="New model folder.")],
    recipe: AdaptRecipe,
    model: Model = DEFAULT_MODEL,
    name: Annotated[str | None, typer.Option(help=r"Name of the new model \[default: the folder's].")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Pictures to draw of each class for the report; 0: none.")] = 4,
    measure: Annotated[bool, typer.Option(help="Measure probe and 20-NN before and after.")] = True,
    precision: Annotated[
        TrainPrecision, typer.Option(help="Number type to train in; auto: whichever is faster here.")
    ] = TrainPrecision.auto,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
    *,
    columns: ParquetColumns,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on your pictures; subfolders, or the labels of a Parquet file, are classes.

    Writes OUT, which every command takes as --model, with a report in OUT/adapt.html and, unless --method full, a
    small adapter, which loads as --model MODEL+OUT/adapter."""
    from bigr_repr.train.adaptation import adapt
    from bigr_repr.train.distributed import disconnect

    with bench_progress() as on_progress:

        def report(made: "Adapted") -> None:
            figures = _measured(made, model, "cpu" if cpu else None, on_progress) if measure else {}
            _write(made, figures, _shown(made, pictures, on_progress))

        adapt(
            data, model=model, out=out, recipe=recipe, name=name, precision=precision, cpu=cpu, columns=columns.named,
            on_progress=on_progress, report=report,
        )  # fmt: skip
    if disconnect():
        _tell(json.loads((out / _RECORD).read_text(encoding="utf-8")), out, model, as_json)


def _write(made: "Adapted", figures: dict[str, tuple[float, float]], shown: "list[ClassShown]") -> None:
    """Write the report into the model's folder. Paths are relative to it, as it may be published."""
    from bigr_repr.evaluate.reports.adapted import quality_of, save_adaptation_page
    from bigr_repr.system.files import replacing
    from bigr_repr.train.adaptation import note_quality

    note_quality(made, quality_of(figures, made.record, len(made.held_out)))
    save_adaptation_page(made.folder / "adapt.html", made.after.config.name, made.record, figures, shown)
    record = {**made.record, "figures": figures, "folder": ".", "adapter": made.adapter and made.adapter.name}
    with replacing(made.folder / _RECORD) as file:
        file.write(f"{json.dumps(record, indent=1, ensure_ascii=False)}\n".encode())


def _measured(
    made: "Adapted", model: str, device: str | None, on_progress: "OnProgress"
) -> dict[str, tuple[float, float]]:
    """Probe and neighbors of the held-out pictures, before and after; none, with a warning, if they cannot be measured:
    the model is trained all the same."""
    from bigr_repr.evaluate.reports.adapted import figures_of
    from bigr_repr.evaluate.runs.adapted import compare_models

    sides = (model, str(made.folder))
    try:
        rows = compare_models(sides, made.images, made.kept, made.held_out, device=device, on_progress=on_progress)
    except ValueError as error:
        typer.echo(f"warning: probe and neighbors are not measured: {error}", err=True)
        return {}
    return figures_of(rows)


def _shown(made: "Adapted", count: int, on_progress: "OnProgress") -> "list[ClassShown]":
    """Pictures of the first classes, or without a class where there are none."""
    from bigr_repr.evaluate.reports.adapted import ClassShown
    from bigr_repr.train.shown import class_pictures, held_out_pictures, subjects

    chosen, found = subjects(made, _MOST_CLASSES) if count else [], []
    unknown = class_pictures(made.before, None, count) if any(each.before is None for each in chosen) else []
    for number, each in enumerate(chosen):
        on_progress("drawing", number, len(chosen))
        before = unknown if each.before is None else class_pictures(made.before, each.before, count)
        after, real = class_pictures(made.after, each.after, count), held_out_pictures(made, each.rows[:count])
        found.append(ClassShown(name=each.name, real=real, before=before, after=after))
    on_progress("drawing", len(chosen), max(1, len(chosen)))
    return found


def _tell(record: dict[str, Any], out: Path, model: str, as_json: bool) -> None:
    """Tell the record, with paths that work from here."""
    adapter = record["adapter"] and str(out.absolute() / record["adapter"])
    record = {**record, "folder": str(out), "adapter": adapter}
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    trained = f"{record['trained_parameters']:,} of {record['parameters']:,} parameters"
    typer.echo(f"trained {trained} in {record['steps']} steps; {record['ended_by']}")
    for what, (before, after) in record["figures"].items():
        typer.echo(f"{what:<13} {before:5.1f} -> {after:5.1f} %")
    loss = record["held_out_loss"]
    typer.echo(f"held-out loss {loss['before']:.4f} -> {loss['after']:.4f}")
    typer.echo(f"model: {record['folder']}")
    if record["adapter"]:
        typer.echo(f"adapter: --model {model}+{record['adapter']}")
    typer.echo(f"page: {record['folder']}/adapt.html")
