"""`bigr-repr bench generation`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.options import ImageColumn
from bigr_repr_cli.progress import bench_progress, counting_progress

if TYPE_CHECKING:
    from bigr_repr.datasets import ImageSet

_Generated = Annotated[
    str,
    typer.Argument(
        metavar="GENERATED", help="Generated images: a folder, the .npz of generate --npz, or a Parquet file."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The network whose features are compared."""

    model: Annotated[
        str | None,
        typer.Option(
            help="What computes the features: inception:FILE (for the FID; FILE: torch-fidelity's weights), "
            "efficientnet-lite0, a model's name or folder, timm:NAME, or pixels:SIDE "
            rf"\[default: efficientnet-lite0, or {DEFAULT_MODEL} if that is not installed]."
        ),
    ] = None
    layer: Annotated[
        list[str],
        typer.Option(
            help="Block whose features to use, counted from 0: 12; -1 (the last); mid "
            r"\[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]
    pool: Annotated[
        o.Pooling, typer.Option(help="How a block's tokens become one vector, as in bench linear-probe.")
    ] = o.Pooling.avg


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """The captions that pictures were drawn from, and the scorer."""

    prompts: Annotated[
        Path | None,
        typer.Option(help="Also measure how well pictures match these captions: one per line, repeated in order."),
    ] = None
    scorer: Annotated[
        str,
        typer.Option(
            help="Scorer: synthetic, for synthetic captions, or transformers:NAME, an image-text model such as CLIP."
        ),
    ] = "synthetic"

    def measure(self, generated: str, image_column: str, real: list[str] | None) -> dict[str, Any] | None:
        """How well they agree; None without captions. Raises BadParameter if there are no real images either."""
        if self.prompts is None:
            if real is None:
                remedy = "give real images, or the prompts of the generated ones"
                raise typer.BadParameter(remedy, param_hint="--real / --prompts")
            return None
        from bigr_repr.evaluate.runs.agreement import bench_agreement
        from bigr_repr.sampling.prompts import read_prompts

        pictures = _opened(generated, image_column)
        with counting_progress("judging") as on_progress:
            found = bench_agreement(pictures, read_prompts(self.prompts), self.scorer, on_progress=on_progress)
        return dataclasses.asdict(found)


def _opened(source: str | list[str], image_column: str) -> ImageSet:
    from bigr_repr.datasets import open_images
    from bigr_repr.images.parquet import Columns

    return open_images(source, train=False, columns=Columns(image=image_column))


def _scores(agreement: dict[str, Any] | None) -> dict[str, float]:
    """How well pictures match their captions, by name; empty without captions."""
    scores = agreement["scores"] if agreement else {}
    return {name: value for name, value in scores.items() if name != "pictures" and value is not None}


def _print(form: o.Format, parts: list[tuple[dict[str, float], str]], record: dict[str, Any]) -> None:
    """Numbers by name: for the terminal one per line, with the protocol of each part below; else a table of one row."""
    if form == o.Format.table:
        for numbers, protocol in parts:
            typer.echo("\n".join([*(f"{name:<17} {value:.4f}" for name, value in numbers.items()), protocol]))
        return
    from bigr_repr_cli.bench.report import Sheet, emit

    found = {name: value for numbers, _ in parts for name, value in numbers.items()}
    emit(form, Sheet(dict.fromkeys(found, ".4f"), [[*found.values()]]), record)


@flattened
def command(
    generated: _Generated,
    judge: Judge,
    captions: Captioned,
    running: o.RunOptions,
    output: o.Printing,
    real: Annotated[
        list[str] | None,
        typer.Option(help="Real images: a folder, a Parquet file or torchvision:NAME:ROOT. May be repeated."),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", "--k", min=1, help="Number of nearest neighbors used by precision and recall.")
    ] = 3,
    image_column: ImageColumn = "image",
) -> None:
    """Compare generated images with real ones: Fréchet distance, precision and recall of a model's features.

    With --prompts, compare them also, or only, with the captions they were drawn from. Results of different extractors,
    or from different numbers of images, are not comparable. Only inception:FILE gives the FID.
    """
    form, agreement = output.chosen, captions.measure(generated, image_column, real)
    told = [(_scores(agreement), agreement["protocol"])] if agreement else []
    if real is None:
        _print(form, told, agreement or {})
        return
    block, settings = o.single_layer(judge.layer, ("mid",)), o.settings_of(judge, running)
    from bigr_repr.evaluate.runs.bench import bench_generation

    sides = _opened(generated, image_column), _opened(real, image_column)
    with bench_progress() as on_progress:
        found, facts = bench_generation(judge.model, *sides, settings, layer=block, k=k, on_progress=on_progress)
    numbers = {"Fréchet distance": found.frechet_distance, "precision": found.precision, "recall": found.recall}
    beside = {} if agreement is None else {"agreement": agreement}
    _print(form, [(numbers, found.protocol), *told], dataclasses.asdict(found) | facts | beside)
