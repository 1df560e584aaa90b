"""`bigr-repr embed status`: shows the progress of a data set, from any machine."""

import dataclasses
import json
import time
from typing import Annotated

import typer

from bigr_repr_cli.options import Json


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL that bigr-repr embed writes into.")],
    as_json: Json = False,
) -> None:
    """Show the progress of a run: units done and by whom, speed, and time left.

    Works on any machine that can read OUT; it reads only names, times and two small files.

    To embed images that are in a folder called status: bigr-repr embed ./status
    """
    from bigr_repr.embed import embed_status
    from bigr_repr.images.find import escape_path
    from bigr_repr_cli.embed.watch import in_time

    status = embed_status(out)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(status), indent=2))
        return
    share = 100 * status.units_done / max(1, status.units)
    typer.echo(f"{escape_path(status.out)}: {status.units_done:,} of {status.units:,} units done ({share:.1f} %)")
    typer.echo(f"images: about {status.images_done:,} of {status.images:,}")
    told = status.told
    if status.rate and status.units_done < status.units:
        left = "" if status.seconds_left is None else f", about {in_time(status.seconds_left)} left at that rate"
        typer.echo(f"recent rate: {status.rate:,.1f} images/s{left}")
    if status.running:
        seen = in_time(max(0.0, time.time() - told["updated"]))
        run = f"process {told['process']} on {told['host']}, engine {told['engine']}, {told['failures']:,} failures"
        typer.echo(f"running: {run}; last wrote {seen} ago")
        for who, units in sorted(told.get("units", {}).items()):
            typer.echo(f"  {who}: {units:,} units")
    elif status.units_done < status.units:
        typer.echo("no run has been active in the last minute; repeat the bigr-repr embed command to continue")
