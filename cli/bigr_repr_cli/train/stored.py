"""Codes that an earlier, interrupted command left in a folder, for a command that adds something to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bigr_repr_cli.progress import counting_progress

if TYPE_CHECKING:
    from bigr_repr.datasets import ImageSet
    from bigr_repr.models.tokenizer import BinaryAutoencoder
    from bigr_repr.train.code_set import CodeSet


def stored_codes(out: Path, images: ImageSet, tokenizer: BinaryAutoencoder, *, mirror: bool) -> CodeSet:
    """The codes in `out`, of the images and, with `mirror`, of their mirror images.

    Raises ValueError if they are of other images or were made otherwise. Warns of codes of older versions, which do not
    say which images they are of.
    """
    from bigr_repr.train.code_set import CodeSet

    codes = CodeSet(out)
    if differ := _differences(codes, tokenizer, mirror):
        remedy = "give the --tokenizer and --mirror that made them, or choose another folder"
        raise ValueError(f"{out} holds codes of {codes.header.tokenizer}: {'; '.join(differ)}; {remedy}")
    _check_images(codes, images, tokenizer.config.image_size)
    return codes


def _differences(codes: CodeSet, tokenizer: BinaryAutoencoder, mirror: bool) -> list[str]:
    """How codes differ from those that are wanted; those of older versions do not name their tokenizer."""
    from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
    from bigr_repr.system.differences import differences

    header = codes.header
    made = {"tokenizer_sha256": header.tokenizer_sha256, "views": header.views, "crops": header.crops}
    wanted = {"tokenizer_sha256": tokenizer_fingerprint(tokenizer), "views": 1 + mirror, "crops": 0}
    return differences(made, wanted, ignored=() if header.tokenizer_sha256 else ("tokenizer_sha256",))


def _check_images(codes: CodeSet, images: ImageSet, side: int) -> None:
    """Raise ValueError if codes are not of these images, in this order."""
    from bigr_repr.train.code_set import images_digest

    if len(codes) != len(images):
        found = f"{codes.folder} holds codes of {len(codes):,} images, not of these {len(images):,}"
        raise ValueError(f"{found}; choose another folder")
    if codes.header.images_sha256 is None:
        unknown = "holds codes of an older version, which do not say which images they are of"
        typer.echo(f"warning: {codes.folder} {unknown}; if not of these, choose another folder", err=True)
        return
    with counting_progress("comparing images") as on_progress:
        if images_digest(images, side, on_progress) != codes.header.images_sha256:
            raise ValueError(f"{codes.folder} holds codes of other images, or in another order; choose another folder")
