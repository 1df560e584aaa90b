"""Options that the training commands share, and how they report their result. Knows no single command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr_cli.flatten import values_of
from bigr_repr_cli.options import ImageColumn, LabelColumn
from bigr_repr_cli.parse import parse_duration

if TYPE_CHECKING:
    from bigr_repr.images.parquet import Columns
    from bigr_repr.train.tokenizer import TokenizerRecipe

Objective = StrEnum("Objective", ["flip", "x0", "bce"])
AttentionKind = StrEnum("AttentionKind", ["full", "causal"])
Head = StrEnum("Head", ["bernoulli", "categorical"])
TokenizerOptimizer = StrEnum("TokenizerOptimizer", ["adam", "muon"])
PixelLoss = StrEnum("PixelLoss", ["l1", "l2"])
Scheduled = StrEnum("Scheduled", ["constant", "cosine"])
ResumedFrom = StrEnum("ResumedFrom", ["newest", "previous"])
TrainPrecision = StrEnum("TrainPrecision", ["auto", "float32", "bfloat16", "float16", "no", "bf16", "fp16"])
CodePrecision = StrEnum("CodePrecision", ["float32", "bfloat16", "no", "bf16"])

Images = Annotated[
    list[str],
    typer.Argument(
        help="Folders, Parquet files, tar shards (several: shards/{000..012}.tar), torchvision:NAME:ROOT, or "
        "synthetic-captions:COUNT."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the result.")]
Preset = Annotated[str, typer.Option(help="Architecture: the name of a preset (see bigr-repr models list).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per optimizer step, summed over all processes.")]
Steps = Annotated[int, typer.Option(min=1, help="Number of optimizer steps.")]


@dataclass(frozen=True, kw_only=True)
class ParquetColumns:
    """Columns of pictures and labels in Parquet files."""

    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"

    @property
    def named(self) -> Columns:
        """The library's equivalent."""
        from bigr_repr.images.parquet import Columns

        return Columns(image=self.image_column, label=self.label_column)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long a run lasts, what it stores, and where it computes; the rest depends on the trainer."""

    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises linearly to its peak.")] = 0
    schedule: Annotated[Scheduled, typer.Option(help="How the learning rate changes after the warm-up.")] = (
        Scheduled.constant
    )
    ema: Annotated[
        float, typer.Option(min=0, max=1, help="Decay of the moving average of the weights, below 1; 0: no averaging.")
    ] = 0.9999
    precision: Annotated[
        TrainPrecision,
        typer.Option(
            help="Number type of the network's computation; auto: float32 or bfloat16, whichever is faster on "
            "this machine, measured before the first step; no, bf16 and fp16 are aliases."
        ),
    ] = TrainPrecision.auto
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000
    keep: Annotated[int, typer.Option(min=1, help="How many checkpoints to keep, the newest.")] = 2
    sample_every: Annotated[int, typer.Option(min=0, help="Steps between sample images; 0: none.")] = 1000
    log_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 50
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data; 0: the training process itself.")] = 0
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the initial weights, the data order and all noise.")
    ] = 0
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False
    max_time: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            help="Write a checkpoint and stop after this time, such as 90s, 45m or 2h, with exit code 75, as on "
            r"SIGTERM and SIGUSR1 \[default: no limit].",
        ),
    ] = None
    resume: Annotated[
        ResumedFrom,
        typer.Option(help="Continue from the newest checkpoint, or set that aside and continue from the previous one."),
    ] = ResumedFrom.newest
    tracker: Annotated[
        str,
        typer.Option(
            help="Where to log scalars besides OUT/metrics.jsonl: tensorboard, wandb, mlflow, comet_ml, any other "
            "installed tracker that Accelerate supports, or none."
        ),
    ] = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class TokenizerLosses:
    """What a tokenizer is trained on, and its losses."""

    crop: Annotated[
        int | None,
        typer.Option(min=1, help=r"Train on random square crops with this side in pixels \[default: on whole images]."),
    ] = None
    mirror: Annotated[bool, typer.Option(help="Mirror every other image; turn this off for text and the like.")] = True
    least_area: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1,
            help="Train on random crops of at least this share of the image area; 1: whole images.",
        ),
    ] = 1.0
    pixel_loss: Annotated[
        PixelLoss, typer.Option(help="l1: mean absolute error; l2: mean squared error, for a better PSNR.")
    ] = PixelLoss.l1
    perceptual: Annotated[
        str, typer.Option(help="Backbone of the perceptual loss, by its timm name; none: no such loss.")
    ] = "vgg16.tv_in1k"
    perceptual_weights: Annotated[
        Path | None, typer.Option(help=r"File with that backbone's weights \[default: timm's, downloaded if needed].")
    ] = None
    perceptual_weight: Annotated[float, typer.Option(min=0, help="Weight of the perceptual loss.")] = 1.0
    gan_start: Annotated[int, typer.Option(help="Step at which the discriminator starts; negative: never.")] = 30_000
    sample_bits: Annotated[bool, typer.Option(help="During training, sample bits instead of thresholding them.")] = True
    optimizer: Annotated[
        TokenizerOptimizer,
        typer.Option(help="muon: Muon for the convolutions between feature maps, Adam for the rest."),
    ] = TokenizerOptimizer.adam

    def recipe(self) -> TokenizerRecipe:
        """The library's equivalent, with None for losses that are off."""
        from bigr_repr.train.tokenizer import TokenizerRecipe

        weights = None if self.perceptual_weights is None else str(self.perceptual_weights)
        changed = {
            "perceptual": None if self.perceptual == "none" else self.perceptual,
            "perceptual_weights": weights,
            "gan_start": None if self.gan_start < 0 else self.gan_start,
        }
        return TokenizerRecipe(**values_of(self) | changed)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Which generator to train, and what to start from."""

    preset: Preset = "tiny"
    name: Annotated[str | None, typer.Option(help=r"Name of the model \[default: the preset's].")] = None
    initial: Annotated[
        str | None,
        typer.Option(
            help=r"Start from the weights of this model; code width and classes may differ \[default: random weights]."
        ),
    ] = None
    objective: Annotated[
        Objective,
        typer.Option(
            help="What the transcoder predicts: by diffusion, which bits are flipped (flip) or the clean bits (x0); or "
            "the bits at once (bce)."
        ),
    ] = Objective.flip
    attention: Annotated[
        AttentionKind, typer.Option(help="full: bidirectional, for masked tokens; causal: for an autoregressive model.")
    ] = AttentionKind.full
    output_head: Annotated[
        Head,
        typer.Option(
            help="Output head for a token's bits: the binary transcoder (bernoulli) or, for comparison and up to "
            "14 bits, a softmax over all codes (categorical)."
        ),
    ] = Head.bernoulli
    compile_blocks: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help=r"Compile the blocks: slower to start, then faster \[default: in long runs on a GPU or a "
            "processor with "
            "AMX].",
        ),
    ] = None
    recompute: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Recompute each block in the backward pass instead of storing its activations: far less memory, "
            "about a third more time.",
        ),
    ] = False


def print_result(what: str, folder: Path) -> None:
    """Print where the result is, once, however many processes trained."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        typer.echo(f"{what}: {folder}")
