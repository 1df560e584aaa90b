"""Options that the training commands share, and how they tell their result. Knows no single command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Objective = StrEnum("Objective", ["flip", "x0", "bce"])
Attention = StrEnum("Attention", ["full", "causal"])
Optimizer = StrEnum("Optimizer", ["adamw", "muon"])
Masking = StrEnum("Masking", ["cosine", "half"])
PixelLoss = StrEnum("PixelLoss", ["l1", "l2"])
Scheduled = StrEnum("Scheduled", ["constant", "cosine"])
Computed = StrEnum("Computed", ["float32", "bfloat16", "float16", "no", "bf16", "fp16"])
Encoded = StrEnum("Encoded", ["float32", "bfloat16", "no", "bf16"])

Images = Annotated[list[str], typer.Argument(help="Folders, Parquet files, or torchvision:NAME:ROOT.")]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the result.")]
Preset = Annotated[str, typer.Option(help="Architecture, as in: bigr-repr models list.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per optimizer step, over all processes.")]
Warmup = Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")]
Schedule = Annotated[Scheduled, typer.Option(help="How the learning rate changes after the warm-up.")]
Ema = Annotated[float, typer.Option(min=0, max=1, help="Decay of the averaged weights, below 1.")]
Precision = Annotated[
    Computed, typer.Option(help="What the network computes in; no, bf16 and fp16 are other names for the three.")
]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
SampleEvery = Annotated[int, typer.Option(min=0, help="Steps between pictures of what it can do; 0: none.")]
LogEvery = Annotated[int, typer.Option(min=1, help="Steps between log lines.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read data; 0: the training process does.")]
Seed = Annotated[
    int, typer.Option(min=0, help="Random seed of the weights, the order of the data, and all that is drawn.")
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")]


def print_result(what: str, folder: Path) -> None:
    """Say where the result lies: once, however many processes trained."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        typer.echo(f"{what}: {folder}")
