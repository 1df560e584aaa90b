"""`bigr-repr embed plan`: what a run would take."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr_cli.embed.command import Images, inputs_of, keywords
from bigr_repr_cli.embed.options import DecodingOptions, NetworkSettings, OutputOptions, RowOptions
from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.options import Json

if TYPE_CHECKING:
    from bigr_repr.embed.estimate import Counted, Estimate


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """How much is measured, and how many machines the run would use."""

    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Embed a sample here, and estimate bytes, requests, hours and cost from it."),
    ] = False
    sample: Annotated[int, typer.Option(min=1, help="Images in the sample.")] = 256
    machines: Annotated[
        int, typer.Option(min=1, help="Number of machines like this one that would share the work.")
    ] = 1


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """Prices: the fields of Prices."""

    machine_hour: Annotated[
        float, typer.Option("--price-machine-hour", min=0, help="Price per hour of a machine like this one.")
    ] = 0.0
    million_reads: Annotated[
        float, typer.Option("--price-million-reads", min=0, help="Price per million read requests to stores.")
    ] = 0.0
    million_writes: Annotated[
        float,
        typer.Option("--price-million-writes", min=0, help="Price per million write and list requests to stores."),
    ] = 0.0
    gb_read: Annotated[
        float, typer.Option("--price-gb-read", min=0, help="Price per gigabyte of inputs read from stores.")
    ] = 0.0
    gb_month: Annotated[
        float, typer.Option("--price-gb-month", min=0, help="Price of storing a gigabyte of rows for a month.")
    ] = 0.0


@flattened
def command(
    images: Images,
    columns: RowOptions,
    runs: OutputOptions,
    decoding: DecodingOptions,
    computing: NetworkSettings,
    asked: EstimateOptions,
    prices: PriceOptions,
    as_json: Json = False,
) -> None:
    """Show what a run would take: insert "plan" into its command. Nothing is written.

    The inputs are listed and counted. With --estimate, a sample of them is embedded on this machine to estimate hours,
    bytes, requests, and the cost at your prices, in any currency. Rows that OUT already holds are taken into account,
    also with --update, as are duplicates that --dedup would find.

    To embed images that are in a folder called plan: bigr-repr embed ./plan
    """
    if idle := [] if asked.estimate else _given(asked, prices):
        raise typer.BadParameter("has no effect without --estimate; add that, or leave it out", param_hint=idle)
    if computing.precision == "int8":
        raise typer.BadParameter(
            "int8 would store its network in OUT; choose another precision", param_hint="--precision"
        )
    from bigr_repr.embed.estimate import Prices, count_inputs, estimate_run

    inputs, options = inputs_of(images), keywords(columns, runs, decoding, computing) | {"literal": images == ["-"]}
    out = options.pop("out")
    if not asked.estimate:
        counted = count_inputs(inputs, **options)
        lines = counted_lines(counted)
        record = {"counted": dataclasses.asdict(counted)}
    else:
        found = estimate_run(
            inputs, out, sample=asked.sample, machines=asked.machines, prices=Prices(**values_of(prices)), **options
        )
        lines = counted_lines(found.counted) + estimate_lines(found)
        record = dataclasses.asdict(found) | {"requests": found.requests._asdict()}
    typer.echo(json.dumps(record, indent=2) if as_json else "\n".join(lines))


def _given(asked: EstimateOptions, prices: PriceOptions) -> list[str]:
    """The options of an estimate that differ from their defaults."""
    sizes, usual = values_of(asked), values_of(EstimateOptions())
    given = [f"--{name}" for name in sizes if sizes[name] != usual[name]]
    return given + [f"--price-{name.replace('_', '-')}" for name, price in values_of(prices).items() if price]


def counted_lines(counted: "Counted") -> list[str]:
    """The counts."""
    from bigr_repr_cli.embed.watch import in_time

    kinds = (("single file", counted.single), ("Parquet file", counted.tables), ("tar shard", counted.tars))
    files = ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in kinds if count)
    held = f", {in_bytes(counted.container_bytes)} of them in containers" if counted.single else ""
    held = f" of {in_bytes(counted.container_bytes)}" if counted.container_bytes and not counted.single else held
    return [
        f"counted, in {in_time(counted.seconds)}:",
        f"  images    {counted.images:,}, in {files}{held if counted.container_bytes else ''}",
        f"    units     {counted.units:,}, one Parquet file in OUT each",
    ]


def estimate_lines(found: "Estimate") -> list[str]:
    """The measurements and the estimates."""
    from bigr_repr.system.machine import describe_machine
    from bigr_repr_cli.embed.watch import in_time

    measured, machine = found.measured, describe_machine()
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    many = f" on {found.machines:,} such machines" if found.machines > 1 else ""
    lines = [
        f"measured with {measured.images:,} images on this machine ({where}):",
        f"  speed     {measured.images_per_second:,.1f} images/s, {measured.failures:,} failed",
        "estimated from both:",
        f"  rows      {found.rows:,}",
        f"  reading   {in_bytes(found.input_bytes)}",
        f"    writing   {in_bytes(found.output_bytes)}, {measured.row_bytes:,.0f} bytes per row",
    ]
    if any(found.requests):
        lines.append(f"    requests  {found.requests.reads:,} reads, {found.requests.writes:,} writes and lists")
    lines.append(f"  time      {in_time(3600 * found.hours)}{many}, not counting listing")
    if found.money:
        lines.append("cost, at the given prices:")
        lines += [f"  {_amount(amount)}  {name}" for name, amount in found.money.items()]
    return lines


def _amount(money: float) -> str:
    """An amount with two decimals or, below 0.1, two significant digits."""
    return f"{money:,.2f}" if money >= 0.1 else f"{money:.2g}"


def in_bytes(count: float) -> str:
    """Format a number of bytes, as in "2.8 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
