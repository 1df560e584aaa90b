"""How a run embeds: every option of embed_images, checked when it is made. Knows nothing of inputs or models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigr_repr._typing import PathLike
from bigr_repr.embed.engines.decoding import Decoding
from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns

if TYPE_CHECKING:
    import torch

    from bigr_repr.features.condition import FeatureCondition
    from bigr_repr.features.extractor import Layer

ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The options of embed_images. Raises ValueError for values out of range; the recipe checks what it records.

    **Columns.** layers: whose vectors are stored, in the column `embedding`, or `embedding_4` and so on if there are
    several; "4+8": both side by side, as one. pool: how tokens become one vector, "avg", "max", "avg+max" (both in a
    row), "grid2" (the means over the four quarters in a row), or "none" (one a token). mirror: vectors are means over
    the image and its mirror image, at twice the time. condition: a class or caption that vectors are read with, or
    masked tokens, as of FeatureExtractor. codes: also store `code`, the tokenizer's bits, packed as bigr_repr.codes
    states. labels_from_folders: also `label`, the name of the file's folder, or what its Parquet or tar file states.
    sha256: also `sha256` of the encoded image, hexadecimal. store_dtype: of the stored vectors, "float32" or "float16".
    dedup="exact": of inputs with the same bytes only the first gets a row (or a failure); duplicates.jsonl lists the
    others with its path. thumbnails: also `image`, the whole picture as WebP with a longer side of so many pixels,
    16..1024, a struct of `bytes` and `path`.

    **Inputs.** root, literal: as bigr_repr.embed.inputs.sources.find_sources takes them. image_column, label_column:
    names of the columns of Parquet inputs.

    **Earlier runs.** What starts over (overwrite) or refuses to go on (resume=False) excludes what goes on.
    resume=False: fail if `out` holds embeddings. retry_failed: try the images that failed again, and with dedup also
    the duplicates of failed images whose bytes have changed; an image that has a row keeps it, even if its file was
    written anew. update: also embed inputs that were added since, as units of their own at the end, and again those
    whose files were written anew (by size and time; not of object stores); inputs that are gone are listed in
    gone.jsonl, and keep their rows unless drop_gone says otherwise. verify: read all that earlier runs wrote, and embed
    again what is not as it was written. overwrite: remove the data set in `out` and begin anew. retry_for: seconds that
    object stores and web servers may be out of reach, at a time, before the run ends; what was out of reach is tried
    again by the next run.

    **Decoding.** icc: "convert" pictures with another ICC profile than sRGB's to sRGB, or "ignore" profiles; None: as
    the data set was begun, or "convert". max_pixels: images with more pixels fail. decode_timeout: seconds that
    decoding one image may take, in a process of its own; None: no limit, decoded in threads of this process, a little
    faster, but a decoder that crashes or hangs takes the run with it. workers: images decoded in parallel; None: one
    per core.

    **Network.** dtype: what the network computes in, "float32", "bfloat16" or "float16"; None: as the weights are.
    device: "cuda", "cuda:1" and so on; several as "cuda:0,cuda:1" or a sequence, "all" for every GPU, with a process
    each. batch_size: images that the network takes at a time; "auto": the fastest, measured; None: that of the data set
    to go on with, or 32. It is recorded, and resumed runs keep it ("auto" as well). compile: compile the network.

    **Engine.** "local": this machine; "ray": the machines of the Ray cluster at ray_address, RAY_ADDRESS or, without
    either, this machine; device is then "auto" (all GPUs, or all cores), "cpu" or "cuda", and workers the cores of each
    actor. unit_size: images per Parquet file; None: 1024, or fewer if rows are large.
    """

    layers: Iterable[Layer] = (12,)
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
        size = self.batch_size
        if not (size in (None, "auto") or (isinstance(size, int) and size >= 1)):
            raise ValueError(f'batch_size={size!r} must be at least 1, or "auto"')
        self._check_earlier_runs()
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine!r} is unknown; choose one of {', '.join(ENGINES)}")
        if not 0 <= self.retry_for <= 604800:
            raise ValueError(f"retry_for={self.retry_for:g} is not within 0..604800 seconds, a week")
        if self.unit_size is not None and self.unit_size < 1:
            raise ValueError(f"unit_size={self.unit_size} must be at least 1")
        _ = self.decoding

    def _check_earlier_runs(self) -> None:
        """Raises ValueError for options that exclude each other."""
        if self.drop_gone and not self.update:
            raise ValueError("drop_gone belongs to update: only that looks for inputs that are gone")
        going_on = " and ".join(f"{name}=True" for name in ("retry_failed", "update", "verify") if getattr(self, name))
        if self.overwrite and not self.resume:
            raise ValueError("overwrite=True removes the rows that resume=False protects; leave one of them out")
        if self.overwrite and going_on:
            raise ValueError(f"overwrite=True removes the rows that {going_on} would go on from; leave one of them out")
        if going_on and not self.resume:
            raise ValueError(f"resume=False refuses the rows that {going_on} would go on from; leave one of them out")

    @property
    def columns(self) -> Columns:
        """Of Parquet inputs; that of labels only where labels are stored."""
        label = self.label_column if self.labels_from_folders else USUAL_COLUMNS.label
        return Columns(image=self.image_column, label=label)

    @property
    def decoding(self) -> Decoding:
        """How pictures are decoded.  Raises ValueError for values out of range."""
        return Decoding(workers=self.workers, timeout=self.decode_timeout, max_pixels=self.max_pixels)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices of the local engine; none for the usual one. Raises ValueError for GPUs not there."""
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
