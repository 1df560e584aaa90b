"""The output of `bigr-repr embed`: a progress bar on stderr, if that is a terminal, and a summary on stdout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.text import Text

from bigr_repr.embed import EmbeddingSet, EmbedSummary, Progress
from bigr_repr.images.find import escape_path
from bigr_repr_cli.embed.watch import Watch, WatchOptions


class _Rate(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        """Recent images per second."""
        return Text(f"{task.speed:,.1f} images/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def embedding_progress(options: WatchOptions) -> Iterator[Callable[[Progress], None]]:
    """Yields the `on_progress` callback of embed_images."""
    console = Console(stderr=True)
    terminal = console.is_terminal and not options.log_json
    watch = Watch(options, lines=not terminal)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bars = Bar(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not terminal)
    with watch.served(), bars as bar:
        listing = bar.add_task("listing", total=None, note="")
        embedding = None

        def show(progress: Progress) -> None:
            nonlocal embedding
            watch.show(*progress)
            note = f"{progress.failures:,} failed" if progress.failures else ""
            if progress.total is None:
                bar.update(listing, completed=progress.done)
            elif embedding is None:  # a separate task, so that earlier work does not count toward the speed
                bar.remove_task(listing)
                embedding = bar.add_task("embedding", total=progress.total, completed=progress.done, note=note)
            else:
                bar.update(embedding, completed=progress.done, note=note)

        try:
            yield show
        except KeyboardInterrupt:
            bar.stop()
            kept = "finished files are kept; repeat the command to continue"
            raise KeyboardInterrupt("nothing had been embedded yet" if embedding is None else kept) from None
        finally:
            watch.write(ended=True)
            if options.log_json:
                watch.say(ended=True)


def print_summary(summary: EmbedSummary, *, as_json: bool) -> None:
    """Print rows, failures, speed, where the result is and how to read it."""
    rate = summary.embedded / summary.seconds if summary.embedded else None
    where = escape_path(str(summary.out))
    if as_json:
        record = {**dataclasses.asdict(summary), "out": where, "images_per_second": rate}
        typer.echo(json.dumps(record, indent=2))
        return
    speed = f", {rate:,.1f} images/s" if rate else ""
    inputs = summary.inputs - summary.dropped
    before = inputs - summary.duplicates - summary.embedded
    note = f"; {before:,} of them were done before" if before else ""
    duplicates = f", {summary.duplicates:,} duplicates" if summary.duplicates else ""
    counts = f"{summary.rows:,} rows, {summary.failures:,} failures{duplicates}"
    typer.echo(f"{inputs:,} images: {counts}{speed}{note}")
    if summary.dropped:
        typer.echo(
            f"rows removed, of inputs that are gone or in Parquet and tar files since rewritten: {summary.dropped:,}"
        )
    if summary.changed:
        typer.echo(f"changed since, embedded again: {summary.changed:,}")
    if summary.rows:
        files = "part-00000.parquet" if summary.shards == 1 else f"part-*.parquet ({summary.shards:,} files)"
        typer.echo(f"rows: {where}/{files}")
    for count, name in ((summary.failures, "failures"), (summary.duplicates, "duplicates"), (summary.gone, "gone")):
        if count:
            typer.echo(f"{name}: {where}/{name}.jsonl")
    if not summary.rows:
        return
    layers = EmbeddingSet(summary.out).layers
    layer = "" if len(layers) == 1 else f", layer={layers[-1]!r}"
    typer.echo("to read the rows in Python:")  # on its own line, so that it can be pasted
    typer.echo(f"from bigr_repr import read_embeddings; data = read_embeddings({str(summary.out.resolve())!a}{layer})")
