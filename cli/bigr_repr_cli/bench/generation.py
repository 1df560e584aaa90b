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
    from bigr_repr.evaluate.data.feature_files import FeatureSet

_FEATURES = "features:"
_Generated = Annotated[
    str,
    typer.Argument(
        metavar="GENERATED",
        help="Generated images: a folder, the .npz of generate --npz, or a Parquet file; or features:FILE, if --real "
        "is such a file too: .npy, .npz or .parquet of any network's features.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The network whose features are compared."""

    model: Annotated[
        str | None,
        typer.Option(
            help="What computes the features: inception:FILE (for the FID; FILE: torch-fidelity's weights), "
            "efficientnet-lite0, a model's name or folder, timm:NAME, or pixels:SIDE; with "
            rf"features:FILE the name of their network \[default: efficientnet-lite0, or {DEFAULT_MODEL} if that is "
            "not installed; the file's name]."
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

    def __post_init__(self) -> None:
        o.check_named(self.model)


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

        if generated.startswith(_FEATURES):
            wanted = f"{generated} holds features; captions are compared with pictures: leave out --prompts"
            raise typer.BadParameter(wanted, param_hint="--prompts")
        pictures = _pictures([generated], image_column)
        with counting_progress("judging") as on_progress:
            found = bench_agreement(pictures, read_prompts(self.prompts), self.scorer, on_progress=on_progress)
        return dataclasses.asdict(found)


def _opened(sources: list[str], image_column: str) -> ImageSet | FeatureSet:
    """One side: pictures, or a file of features. Raises BadParameter for several files of features."""
    if not any(source.startswith(_FEATURES) for source in sources):
        return _pictures(sources, image_column)
    if len(sources) > 1:
        wanted = f"{', '.join(sources)}: features are given as one file; join them, with one row per image"
        raise typer.BadParameter(wanted, param_hint="--real")
    from bigr_repr.evaluate.data.feature_files import open_features

    return open_features(sources[0].removeprefix(_FEATURES))


def _pictures(sources: list[str], image_column: str) -> ImageSet:
    """Pictures. Errors of files that may hold features say how these are given."""
    from bigr_repr.datasets import open_images
    from bigr_repr.images.formats import ImageError
    from bigr_repr.images.parquet import Columns

    if arrays := [source for source in sources if Path(source).suffix == ".npy"]:
        raise ValueError(f"{arrays[0]} holds no pictures; if it holds features, give features:{arrays[0]}")
    try:
        return open_images(sources, train=False, columns=Columns(image=image_column))
    except ValueError as error:
        tables = (source for source in sources if Path(source).suffix in (".npz", ".parquet"))
        if not (files := [source for source in tables if str(error).startswith(source)]):
            raise
        said = f"{error}; if {files[0]} holds features, give features:{files[0]}"
        raise ImageError(error.kind, said) if isinstance(error, ImageError) else ValueError(said) from error


def _scores(agreement: dict[str, Any]) -> dict[str, str | float]:
    """How well pictures match their captions, by name, after the scorer."""
    scores = {name: value for name, value in agreement["scores"].items() if name != "pictures" and value is not None}
    return {"scorer": agreement["scorer"], **scores}


def _print(form: o.Format, parts: list[tuple[dict[str, str | float], str]], record: dict[str, Any]) -> None:
    """Results by name: for the terminal a number per line and the protocol of each part below; else a table of one row,
    with what computed the numbers.
    """
    if form == o.Format.table:
        for results, protocol in parts:
            numbers = {name: value for name, value in results.items() if not isinstance(value, str)}
            typer.echo("\n".join([*(f"{name:<17} {value:.4f}" for name, value in numbers.items()), protocol]))
        return
    from bigr_repr_cli.bench.report import Sheet, emit

    found = {name: value for results, _ in parts for name, value in results.items()}
    columns = {name: "" if isinstance(value, str) else ".4f" for name, value in found.items()}
    emit(form, Sheet(columns, [[*found.values()]]), record)


@flattened
def command(
    generated: _Generated,
    judge: Judge,
    captions: Captioned,
    running: o.RunOptions,
    output: o.Printing,
    real: Annotated[
        list[str] | None,
        typer.Option(
            help="Real images: folders, Parquet files or torchvision:NAME:ROOT; may be repeated. Or features:FILE."
        ),
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
    from bigr_repr.evaluate.runs.generation import bench_generation

    sides = _opened([generated], image_column), _opened(real, image_column)
    with bench_progress() as on_progress:
        found, facts = bench_generation(judge.model, *sides, settings, layer=block, k=k, on_progress=on_progress)
    results: dict[str, str | float] = {"features": found.extractor, "Fréchet distance": found.frechet_distance}
    results |= {"precision": found.precision, "recall": found.recall}
    beside = {} if agreement is None else {"agreement": agreement}
    _print(form, [(results, found.protocol), *told], dataclasses.asdict(found) | facts | beside)
