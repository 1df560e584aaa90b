"""`bigr-repr train captions`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.progress import counting_progress
from bigr_repr_cli.train import options as o
from bigr_repr_cli.train.stored import stored_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigr_repr.datasets import ImageSet
    from bigr_repr.train.code_set import CodeSet


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Where the captions come from, and how they are encoded."""

    text_encoder: Annotated[
        str,
        typer.Option(
            help="Frozen text encoder: words, which needs no download, or a transformers model by hub name or "
            "folder, such as google/flan-t5-xl (the paper's width)."
        ),
    ] = "words"
    caption_tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="Maximum number of tokens per caption; longer captions are truncated.")
    ] = 120
    caption_column: Annotated[str, typer.Option(help="Column of Parquet files with strings or lists of strings.")] = (
        "caption"
    )
    coco: Annotated[
        Path | None, typer.Option(help="COCO captions file, for a folder of its pictures.", metavar="JSON")
    ] = None
    template: Annotated[
        str | None,
        typer.Option(help='Make captions from class names, with {} for the name: "a photograph of a {}".'),
    ] = None

    def read(self, images: ImageSet) -> Sequence[Sequence[str]]:
        """The captions of all images. Raises ValueError if there are none."""
        from bigr_repr.captions.sources import class_captions, coco_captions
        from bigr_repr.datasets import FolderSet

        if self.coco is not None:
            if not isinstance(images, FolderSet):
                raise ValueError(f"--coco {self.coco} needs exactly one folder of pictures")
            return coco_captions(self.coco, images.files)
        if self.template is not None:
            return class_captions(images.labels, images.class_names, self.template)
        found = images.captions
        if found is None:
            raise ValueError(
                "the pictures have no captions: a .txt or .json file next to each, in tar shards too, a column of "
                "captions (--caption-column), a COCO captions file (--coco) or class names (--template) gives "
                "some"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are encoded."""

    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at a time.")] = 64
    mirror: Annotated[
        bool, typer.Option(help="Also store the codes of mirror images, whose captions then confuse left and right.")
    ] = False
    precision: Annotated[
        o.CodePrecision,
        typer.Option(help="bfloat16: faster, a few bits differ; no and bf16 are aliases of the two."),
    ] = o.CodePrecision.float32
    device: Annotated[
        str, typer.Option(help="Where the networks run: auto (first GPU, else CPU), cpu, cuda, cuda:1.")
    ] = "auto"

    def codes(self, images: ImageSet, tokenizer: str, out: Path) -> CodeSet:
        """The codes of the images, reused if an earlier run stopped after writing them.

        Raises ValueError if the codes in `out` are of other images or were made otherwise.
        """
        from bigr_repr.checkpoints.pretrained import load_tokenizer
        from bigr_repr.train.code_set import write_codes

        encoder = load_tokenizer(tokenizer)
        if (out / "codes.json").exists() and not (out / "captions.json").exists():
            return stored_codes(out, images, encoder, mirror=self.mirror)
        with counting_progress("encoding") as on_progress:
            return write_codes(
                images, encoder, out, tokenizer_name=tokenizer, on_progress=on_progress, **values_of(self)
            )


@flattened
def command(
    data: o.Images,
    tokenizer: Annotated[str, typer.Option(help="Folder of a tokenizer or of a whole model, or a model's name.")],
    out: Annotated[Path, typer.Option(help="New folder for the packed codes and the encoded captions.")],
    captions: CaptionSource,
    encoding: Encoding,
    *,
    columns: o.ParquetColumns,
) -> None:
    """Encode images and their captions once, so that a text model trains without either.

    Captions come from a .txt or .json file next to each picture, in a folder or a WebDataset tar shard, from a column
    of Parquet files, from a COCO captions file, or from class names and a template. synthetic-captions:COUNT renders
    scenes of simple shapes with captions; synthetic-captions:COUNT:held-out shows the pairs of color and shape that
    the others leave out."""
    from bigr_repr.checkpoints.text_encoders import load_text_encoder
    from bigr_repr.datasets import open_images
    from bigr_repr.system.devices import choose_device
    from bigr_repr.train.caption_set import check_captions, write_captions

    images = open_images(data, columns=replace(columns.named, caption=captions.caption_column))
    texts = captions.read(images)
    check_captions(texts)
    reader = load_text_encoder(captions.text_encoder, device=str(choose_device(encoding.device)))
    codes = encoding.codes(images, tokenizer, out)
    with counting_progress("captions") as on_progress:
        store = write_captions(texts, reader, out, limit=captions.caption_tokens, on_progress=on_progress)
    header, size = store.header, sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"{len(codes):,} images x {codes.views} views, {codes.header.n_bits} bits each: {out} ({decimal(size)})")
    notes = [f"{header.bare:,} images have none"] if header.bare else []
    notes += [f"{header.cut:,} were truncated to {header.limit} tokens"] if header.cut else []
    what = f"{header.captions:,} captions, {header.texts:,} distinct, of at most {header.longest} tokens"
    each = f"encoded by {header.encoder}: {store.bytes_per_caption:,.0f} bytes per caption"
    typer.echo("; ".join([f"{what}, {each}", *notes]))
