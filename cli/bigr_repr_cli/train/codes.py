"""`bigr-repr train codes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.progress import counting_progress
from bigr_repr_cli.train import options as o
from bigr_repr_cli.train.stored import stored_codes

if TYPE_CHECKING:
    from bigr_repr.train.alignment import FrozenNetwork
    from bigr_repr.train.code_set import CodeSet


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Another network whose features of the images are stored with the codes."""

    align: Annotated[
        str | None,
        typer.Option(
            help=r"Also store the features of this network, for train generator --align-weight: timm:NAME or "
            r"timm:NAME:BLOCK \[default: none]."
        ),
    ] = None
    align_weights: Annotated[
        Path | None, typer.Option(help=r"File with that network's weights \[default: timm's, downloaded if needed].")
    ] = None

    def network(self, grid: int, crops: int) -> FrozenNetwork | None:
        """The network, for a grid of tokens. Raises ValueError for an unsuitable one, and for crops of the images."""
        from bigr_repr.train.alignment import FrozenNetwork

        if self.align is not None and crops:
            raise ValueError(f"crops={crops}, align={self.align}: features of crops are not stored; give one of them")
        return None if self.align is None else FrozenNetwork(self.align, grid=grid, weights=self.align_weights)

    def lacking(self, out: Path) -> bool:
        """Whether only the features are missing in `out`."""
        return self.align is not None and (out / "codes.json").exists() and not (out / "features.json").exists()


@flattened
def command(
    data: o.Images,
    tokenizer: Annotated[str, typer.Option(help="Folder of a tokenizer or of a whole model, or a model's name.")],
    out: Annotated[Path, typer.Option(help="New folder for the packed codes.")],
    alignment: Alignment,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at a time.")] = 64,
    mirror: Annotated[bool, typer.Option(help="Also store the codes of every mirror image.")] = True,
    crops: Annotated[
        int, typer.Option(min=0, help="Also store the codes of this many random crops of every image, some mirrored.")
    ] = 0,
    precision: Annotated[
        o.CodePrecision,
        typer.Option(help="bfloat16: faster, a few bits differ; no and bf16 are aliases of the two."),
    ] = o.CodePrecision.float32,
    device: Annotated[
        str, typer.Option(help="Where the network runs: auto (first GPU, else CPU), cpu, cuda, cuda:1.")
    ] = "auto",
    *,
    columns: o.ParquetColumns,
) -> None:
    """Encode images once into a packed code data set, so that a generator trains without the images."""
    from bigr_repr.checkpoints.pretrained import load_tokenizer
    from bigr_repr.datasets import open_images
    from bigr_repr.train.alignment import write_features
    from bigr_repr.train.code_set import write_codes

    images, encoder = open_images(data, columns=columns.named), load_tokenizer(tokenizer)
    network = alignment.network(encoder.config.grid, crops)
    if alignment.lacking(out):
        codes = stored_codes(out, images, encoder, mirror=mirror)  # of a run that ended before it wrote the features
    else:
        with counting_progress("encoding") as on_progress:
            codes = write_codes(
                images, encoder, out, tokenizer_name=tokenizer, batch_size=batch_size, mirror=mirror, crops=crops,
                device=device, precision=precision, on_progress=on_progress,
            )  # fmt: skip
    if network is not None:
        with counting_progress("features") as on_progress:
            write_features(images, codes, network, batch_size=batch_size, device=device, on_progress=on_progress)
    _report(codes)


def _report(codes: CodeSet) -> None:
    size = sum(file.stat().st_size for file in codes.folder.iterdir())
    what = f"{len(codes):,} images x {codes.views} views, {codes.header.n_bits} bits each"
    typer.echo(f"{what}: {codes.folder} ({decimal(size)})")
