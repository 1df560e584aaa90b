"""`bigr-repr bench suite`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.progress import bench_progress


def command(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="Which models on which data sets.")],
    out: Annotated[Path, typer.Option(help="Folder for the reports; what is done there is not done again.")],
    model: Annotated[str | None, typer.Option(help="What $model stands for, instead of the file's.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of data sets given by name, instead of the file's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many training images, for a quick run.")] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="At most so many test images.")] = None,
    device: o.Device = None,
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure many representations on many data sets: Markdown, JSON and an HTML page with plots.

    A broken run goes on where it was when the command is given again.
    """
    import json

    from bigr_repr.evaluate.report import markdown_table, write_reports
    from bigr_repr.evaluate.suite import read_suite, run_suite

    plan = read_suite(suite, model=model, root=root).limited(limit, test_limit)
    settings = o.make_settings(device=device, cache=cache, batch_size=batch_size, workers=workers)
    with bench_progress() as on_progress:
        records = run_suite(plan, out, settings, on_progress)
    files = write_reports(plan.name, records, out)
    if as_json:
        typer.echo(json.dumps({"name": plan.name, "rows": records, "files": [str(file) for file in files]}, indent=2))
    else:
        typer.echo(markdown_table(records))
        typer.echo(f"reports: {', '.join(str(file) for file in files)}")
