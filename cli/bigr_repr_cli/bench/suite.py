"""`bigr-repr bench suite`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import Json
from bigr_repr_cli.progress import bench_progress

_Suite = Annotated[
    Path, typer.Argument(metavar="SUITE.yaml", help="File that names the models and the data sets to measure them on.")
]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Options that override the file."""

    model: Annotated[
        str | None, typer.Option(help=r"Model that $model in the file stands for \[default: the file's].")
    ] = None
    root: Annotated[
        str | None, typer.Option(help=r"Folder of the data sets that are given by name \[default: the file's].")
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=r"Maximum number of training images, for a quick run \[default: the file's]."),
    ] = None
    test_limit: Annotated[
        int | None, typer.Option(min=1, help=r"Maximum number of test images \[default: the file's].")
    ] = None

    def __post_init__(self) -> None:
        o.check_named(self.model)


@flattened
def command(
    suite: _Suite,
    out: Annotated[Path, typer.Option(help="Folder for the reports; finished parts there are not repeated.")],
    changes: Changes,
    machine: o.Machine,
    as_json: Json = False,
) -> None:
    """Measure many representations on many data sets: Markdown, JSON and an HTML page with plots.

    To resume a stopped run, repeat the command.
    """
    from bigr_repr.evaluate.reports.report import seen_note, tables_of, write_reports
    from bigr_repr.evaluate.runs.suite import read_suite, run_suite

    plan = read_suite(suite, model=changes.model, root=changes.root).limited(changes.limit, changes.test_limit)
    with bench_progress() as on_progress:
        records = run_suite(plan, out, o.settings_of(machine), on_progress)
    files = write_reports(plan.name, records, out)
    if as_json:
        typer.echo(json.dumps({"name": plan.name, "rows": records, "files": [str(file) for file in files]}, indent=2))
    else:
        from bigr_repr_cli.bench.report import Sheet, emit

        tables = tables_of(records)
        for table in tables:
            emit(o.Format.table, Sheet(dict.fromkeys(table.head, ""), table.lines), {}, head=table.title, notes=[""])
        typer.echo("\n".join([*seen_note(tables), f"reports: {', '.join(str(file) for file in files)}"]))
