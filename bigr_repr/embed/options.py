"""All options of embed_images, validated on construction. Independent of inputs and models."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from bigr_repr._typing import PathLike
from bigr_repr.embed.engines.decoding import Decoding
from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns

if TYPE_CHECKING:
    import torch

    from bigr_repr.features.condition import FeatureCondition
    from bigr_repr.features.extractor import Layer

ENGINES = ("local", "ray")
_WHOLE = ("thumbnails", "workers", "batch_size", "unit_size")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The options of embed_images. Raises ValueError for values out of range; the recipe checks what it records.

    **Columns.** layers: whose vectors to store, one block or several: in the column `embedding`, or `embedding_4` and
    so on if there are several; "4+8": both concatenated. pool: how tokens become one vector, "avg", "max", "avg+max"
    (both concatenated), "grid2" (the means over four quarters, concatenated), or "none" (one vector per token). mirror:
    average the vectors of the image and its mirror image, in twice the time. condition: a class or caption that
    features are extracted with, or masked tokens, as in FeatureExtractor. codes: also store `code`, the tokenizer's
    bits, packed as in bigr_repr.codes. labels_from_folders: also store `label`, the name of the file's folder, or the
    label in its Parquet or tar file. sha256: also store `sha256` of the encoded image, hexadecimal. store_dtype: of the
    stored vectors, "float32" or "float16". dedup="exact": among byte-identical inputs only the first gets a row (or a
    failure); duplicates.jsonl lists the others with its path. thumbnails: also store `image`, the whole picture as WebP
    with a longer side of this many pixels, 16..1024, a struct of `bytes` and `path`.

    **Inputs.** root, literal: as in bigr_repr.embed.inputs.sources.find_sources. image_column, label_column: names of
    the columns of Parquet inputs.

    **Earlier runs.** Options that start over (overwrite) or refuse to resume (resume=False) exclude those that resume.
    resume=False: fail if `out` holds embeddings. retry_failed: retry failed images and, with dedup, duplicates of
    failed images whose bytes have changed; an image that has a row keeps it, even if its file has changed. update: also
    embed inputs that were added since, as new units at the end, and re-embed those whose files have changed (by size
    and time; in object stores only Parquet and tar files); such a file's images get new rows at the end instead of
    their old ones; other inputs that no longer exist are listed in gone.jsonl and keep their rows unless drop_gone is
    set. verify: read everything that earlier runs wrote, and re-embed damaged parts. overwrite: remove the data set in
    `out` and start over. retry_for: seconds to retry unreachable object stores and web servers, each time, before the
    run stops; the next run retries what was unreachable.

    **Decoding.** icc: "convert" pictures with an ICC profile other than sRGB to sRGB, or "ignore" profiles; None: as
    in the existing data set, or "convert". max_pixels: images with more pixels fail. decode_timeout: time limit in
    seconds per image, decoded in a separate process; None: no limit, decoded in threads of this process, slightly
    faster, but a decoder that crashes or hangs brings down the run. workers: images decoded in parallel; None: one per
    core.

    **Network.** dtype: of the network's computation, "float32", "bfloat16" or "float16"; None: that of the weights.
    device: "cuda", "cuda:1" and so on; several as "cuda:0,cuda:1" or a sequence, "all" for every GPU, with one process
    each. batch_size: images per batch of the network; "auto": the fastest, measured; None: that of the existing data
    set, or 32. It is recorded, and resumed runs reuse it ("auto" too). compile: compile the network.

    **Engine.** "local": this machine; "ray": the Ray cluster at ray_address, at RAY_ADDRESS or, without either, on this
    machine; device is then "auto" (all GPUs, or all cores), "cpu" or "cuda", and workers is the number of cores per
    actor. unit_size: images per Parquet file; None: 1024, or fewer if rows are large.
    """

    layers: Layer | Iterable[Layer] = (12,)
    pool: str = "avg"
    mirror: bool = False
    condition: FeatureCondition | int | str | None = None
    codes: bool = False
    labels_from_folders: bool = False
    sha256: bool = False
    store_dtype: str = "float32"
    dedup: str | None = None
    thumbnails: int | None = None

    root: PathLike | None = None
    literal: bool = False
    image_column: str = "image"
    label_column: str = "label"

    resume: bool = True
    retry_failed: bool = False
    update: bool = False
    drop_gone: bool = False
    verify: bool = False
    overwrite: bool = False
    retry_for: float = 600.0

    icc: str | None = None
    max_pixels: int = MAX_PIXELS
    decode_timeout: float | None = 120.0
    workers: int | None = None

    dtype: str | None = None
    device: torch.device | str | Sequence[str] | None = None
    batch_size: int | str | None = None
    compile: bool = False

    engine: str = "local"
    ray_address: str | None = None
    unit_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.blocks)  # a stream of them can be read only once
        for name in _WHOLE:
            if (number := getattr(self, name)) is not None:
                with suppress(TypeError):  # the checks below refuse other kinds
                    object.__setattr__(self, name, _plain(number))
        size = self.batch_size
        if not (size in (None, "auto") or (isinstance(size, int) and size >= 1)):
            raise ValueError(f'batch_size={size!r} must be at least 1, or "auto"')
        self._check_earlier_runs()
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r} is unknown; choose one of {', '.join(ENGINES)}")
        if not 0 <= self.retry_for <= 604800:
            raise ValueError(f"retry_for={self.retry_for:g} is not within 0..604800 seconds, a week")
        if self.unit_size is not None and not (isinstance(self.unit_size, int) and self.unit_size >= 1):
            raise ValueError(f"unit_size={self.unit_size!r} must be a whole number, at least 1")
        _ = self.decoding

    def _check_earlier_runs(self) -> None:
        """Raise ValueError for options that exclude each other."""
        if self.drop_gone and not self.update:
            raise ValueError("drop_gone needs update, which looks for missing inputs; add update")
        going_on = " and ".join(f"{name}=True" for name in ("retry_failed", "update", "verify") if getattr(self, name))
        if self.overwrite and not self.resume:
            raise ValueError("overwrite=True removes the rows that resume=False protects; leave one of them out")
        if self.overwrite and going_on:
            raise ValueError(
                f"overwrite=True removes the rows that {going_on} would continue from; leave one of them out"
            )
        if going_on and not self.resume:
            raise ValueError(
                f"resume=False refuses the rows that {going_on} would continue from; leave one of them out"
            )

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """layers as a tuple, also if it is a single one."""
        with suppress(TypeError):
            return (_plain(self.layers),)
        with suppress(TypeError):
            return tuple(map(_plain, cast("Iterable[Layer]", self.layers)))
        raise ValueError(f'layers={self.layers!r} must be blocks: 12, "mid", "4+8", or several, such as (4, 12)')

    @property
    def columns(self) -> Columns:
        """Columns of Parquet inputs; that of labels only if labels are stored."""
        label = self.label_column if self.labels_from_folders else USUAL_COLUMNS.label
        return Columns(image=self.image_column, label=label)

    @property
    def decoding(self) -> Decoding:
        """How pictures are decoded.  Raises ValueError for values out of range."""
        return Decoding(workers=self.workers, timeout=self.decode_timeout, max_pixels=self.max_pixels)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the local engine's devices; empty for the default. Raises ValueError for missing GPUs."""
        import torch

        if self.device is None or self.engine == "ray":
            return ()
        if self.device == "all":
            if not torch.cuda.is_available():
                raise ValueError("device='all': this machine has no GPU that PyTorch sees; leave it out for the CPU")
            return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if isinstance(self.device, torch.device):
            return (str(self.device),)
        return tuple(self.device.split(",") if isinstance(self.device, str) else self.device)


def _plain(value: Any) -> Any:
    """A whole number, also NumPy's, as Python's own; a text as it is.  Raises TypeError for anything else."""
    return value if isinstance(value, str | bool) else operator.index(value)
