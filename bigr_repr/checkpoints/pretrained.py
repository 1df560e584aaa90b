"""Models on disk: loads by name, folder or hub, saves, imports released files. Knows nothing of images or training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints import adapters, catalog, hub, released
from bigr_repr.checkpoints.catalog import CONFIG_FILE, GENERATOR_FILE, TOKENIZER_FILE, ModelEntry, available_models
from bigr_repr.checkpoints.storage import STORED, read_safetensors, state_in, write_folder
from bigr_repr.checkpoints.text_encoders import TextEncoder, load_text_encoder
from bigr_repr.checkpoints.weights import assign, fingerprint, without_weights
from bigr_repr.config import ModelConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.system.devices import choose_device

__all__ = [
    "ModelEntry",
    "Pretrained",
    "available_models",
    "load",
    "load_official",
    "load_tokenizer",
    "save",
    "save_tokenizer",
    "tokenizer_fingerprint",
    "with_adapter",
]


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with its weights, as returned by `load`, in eval mode, and accepted by `save`."""

    config: ModelConfig
    tokenizer: BinaryAutoencoder
    generator: BiGR

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and float32 values of all weights, 64 hexadecimal digits; for provenance.

        Unchanged by `to`, and by `save` and `load` unless saving rounded the weights. Computed once, on first use:
        after changing weights, create a new Pretrained.
        """
        return fingerprint(_joined(self.tokenizer.state_dict(), self.generator.state_dict()))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The encoder of a text model's captions, loaded on first use, on the CPU.

        Raises ValueError for a class model and for an encoder other than the one the model was trained with, otherwise
        as `load_text_encoder`.
        """
        name, wanted = self.config.text_encoder, self.config.text_encoder_sha256
        if not name:
            raise ValueError(f"{self.config.name} was trained with classes, not captions; pass labels, not a prompt")
        encoder = load_text_encoder(name)
        if wanted and encoder.fingerprint != wanted:
            raise ValueError(
                f"the text encoder {name} is not the one {self.config.name} was trained with: its SHA-256 is "
                f"{encoder.fingerprint[:12]}…, not {wanted[:12]}…; replace it with that one"
            )
        return encoder

    @property
    def device(self) -> torch.device:
        """The device of the generator's weights."""
        return next(self.generator.parameters()).device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pretrained:
        """Move or convert the weights, in place as modules do, and return self. The fingerprint does not change.

        dtype: float16, bfloat16, float32 or float64 of torch; None: unchanged. Raises ValueError for another one, and
        for a device that is unknown or not there.
        """
        device, dtype = _usable_device(device), _usable_dtype(dtype)
        if dtype is not None and dtype != next(self.generator.parameters()).dtype:
            _ = self.fingerprint  # computed before the weights are rounded
        self.tokenizer.to(device=device, dtype=dtype)
        self.generator.to(device=device, dtype=dtype)
        return self

    @classmethod
    def from_pretrained(
        cls, name: PathLike, *, revision: str | None = None, local_files_only: bool = False
    ) -> Pretrained:
        """`load` under the name that other libraries use: "user/name" is a model on the hub, unless it is a folder.

        revision: a branch, tag or commit there. Raises as `load` does.
        """
        text = str(name)
        on_hub = hub.parse_folder_name(f"hf:{text}") is not None and not Path(text).is_dir()
        text = f"hf:{text}" if on_hub else text
        return load(text if revision is None else f"{text}@{revision}", local_files_only=local_files_only)


def load(
    name: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> Pretrained:
    """Load a bundled model by name, a folder written by `save`, or a model from the hub.

    "hf:user/name" is a model folder on the hub, "hf:user/name@REVISION" one of its branches, tags or commits, and
    "hf:owner/repo/VARIANT" the authors' release. "NAME+FOLDER" is a model with an adapter written by `bigr-repr adapt`.
    Weights are float32 unless `dtype` is given. The recorded checksum of a folder's weights is verified.
    local_files_only: download nothing.

    Raises FileNotFoundError for an unknown name, ValueError for an empty one, for a device or dtype that `to` refuses,
    and for files that are damaged or do not fit together, ConnectionError if the hub cannot be reached.
    """
    _usable_device(device), _usable_dtype(dtype)  # before anything is read
    if (parts := adapters.split_name(str(name))) is not None:
        return with_adapter(load(parts[0], local_files_only=local_files_only), parts[1]).to(device, dtype)
    if (found := hub.parse_folder_name(str(name))) is not None:
        folder = hub.fetch_folder(found, local_files_only=local_files_only)
    elif str(name).startswith("hf:"):
        tokenizer, generator = released.fetch(str(name), local_files_only=local_files_only)
        return load_official(tokenizer=tokenizer, generator=generator, device=device, dtype=dtype)
    else:
        folder = catalog.find_folder(name)
    config, checksum = catalog.read_config(folder)
    tokenizer_module, generator_module = empty_modules(config)
    for module, file in ((tokenizer_module, TOKENIZER_FILE), (generator_module, GENERATOR_FILE)):
        assign(module, read_safetensors(folder / file), str(folder / file))
    pre = Pretrained(config, tokenizer_module.float().eval(), generator_module.float().eval())
    _check_sum(folder, checksum, pre.fingerprint)
    return pre.to(device, dtype)


def with_adapter(base: Pretrained, folder: PathLike) -> Pretrained:
    """A model with the changes of an adapter that was made for it; `base` is not changed.

    Raises FileNotFoundError if there is no adapter, ValueError, naming the file, if it is damaged or incomplete, or
    belongs to another model.
    """
    folder = Path(folder).expanduser()
    header = adapters.read_header(folder)
    adapters.check_base(header, folder, name=base.config.name, fingerprint=base.fingerprint)
    adapters.check_files(folder)
    tokenizer, generator = empty_modules(header.config)
    own = folder / TOKENIZER_FILE
    encoding = read_safetensors(own) if own.exists() else state_in(base.tokenizer, torch.float32)
    assign(tokenizer, encoding, str(own if own.exists() else folder))
    state = adapters.adapted_state(state_in(base.generator, torch.float32), folder)
    assign(generator, state, str(folder))
    for module in (tokenizer, generator):
        for weight in module.parameters():  # unchanged weights would otherwise be shared with the base
            weight.data = weight.data.clone()
    return Pretrained(header.config, tokenizer.float().eval(), generator.float().eval())


def load_official(
    *,
    tokenizer: PathLike,
    generator: PathLike,
    image_size: int | None = None,
    heads: int | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> Pretrained:
    """Load a model of any size from the two files of the authors' release: shapes determine the architecture.

    image_size: in pixels; follows from the files, and is checked if given. heads: dim / 64 unless given, because the
    files do not tell. name: of the model; for files named as in the release, the release's. The files are
    memory-mapped, so they must not change while the model is in use; `dtype`: float32 unless given.
    verify: read both first and compare them with their own checksums and, if named as in the release, with the
    release's.

    Raises OSError for files that cannot be opened, ValueError for damaged ones, for missing, surplus or misshapen
    tensors (one message names all), for two files that do not belong together, and for a device or dtype that `to`
    refuses.
    """
    _usable_device(device), _usable_dtype(dtype)  # before anything is read
    paths = Path(tokenizer), Path(generator)
    for path in paths if verify else ():
        released.verify_released(path)
    weights = released.read_released(*paths, heads=heads, name=name)
    config = weights.config
    tokenizer_module, generator_module = empty_modules(config)
    assign(tokenizer_module, weights.tokenizer, str(paths[0]), released.tokenizer_file_name)
    assign(generator_module, weights.generator, str(paths[1]), released.generator_file_name)
    if image_size not in (None, config.image_size):
        tokens, factor = f"{config.tokenizer.grid}x{config.tokenizer.grid}", config.tokenizer.downsample
        raise ValueError(
            f"image_size={image_size} does not fit these files: {tokens} tokens ({paths[1]}) of {factor} pixels "
            f"({paths[0]}) make images of {config.image_size} pixels; pass that, or leave it out"
        )
    pre = Pretrained(config, tokenizer_module.float().eval(), generator_module.float().eval())
    return pre.to(device, dtype)


def save(pre: Pretrained, folder: PathLike, *, store_dtype: torch.dtype | None = None) -> Path:
    """Write a model folder: config.json, tokenizer.safetensors, generator.safetensors. Returns its absolute path.

    store_dtype: float16, bfloat16 or float32 of torch for the stored weights; None: unchanged. torch.float16 halves the
    files; `load` returns float32 again. Each file is written to a temporary file, synced and renamed. A new folder
    appears atomically. In a folder that already contains a model, files are replaced one by one; if the machine crashes
    between two of them, `load` detects it by the checksum.

    Raises FileExistsError unless `folder` is new, empty or contains a model, ValueError for another `store_dtype` or a
    weight not finite in it, OSError, naming the folder or file, if writing fails (the previous model remains).
    """
    parts = {TOKENIZER_FILE: state_in(pre.tokenizer, store_dtype), GENERATOR_FILE: state_in(pre.generator, store_dtype)}
    digest = fingerprint(_joined(parts[TOKENIZER_FILE], parts[GENERATOR_FILE]))
    return write_folder(Path(folder), parts, catalog.config_text(pre.config, digest))


def save_tokenizer(tokenizer: BinaryAutoencoder, folder: PathLike, *, store_dtype: torch.dtype | None = None) -> Path:
    """Write only a tokenizer, for `load_tokenizer` and for training generators: config.json and weights.

    Arguments, guarantees and errors are those of `save`; a folder with a whole model is refused too.
    """
    state = state_in(tokenizer, store_dtype)
    return write_folder(
        Path(folder), {TOKENIZER_FILE: state}, catalog.config_text(tokenizer.config, fingerprint(_joined(state, {})))
    )


def load_tokenizer(name: PathLike, *, device: torch.device | str = "cpu") -> BinaryAutoencoder:
    """The tokenizer, float32 and in eval mode, from a folder written by `save_tokenizer` or any model that `load`
    takes.

    Raises as `load` does.
    """
    chosen = _usable_device(device)  # before anything is read
    hub_or_adapter = str(name).startswith("hf:") or adapters.split_name(str(name)) is not None
    if hub_or_adapter or (catalog.find_folder(name) / GENERATOR_FILE).exists():
        return load(name, device=device).tokenizer
    folder = catalog.find_folder(name)
    config, checksum = catalog.read_tokenizer_config(folder)
    with without_weights():
        tokenizer = BinaryAutoencoder(config)
    assign(tokenizer, read_safetensors(folder / TOKENIZER_FILE), str(folder / TOKENIZER_FILE))
    tokenizer.float().eval()
    _check_sum(folder, checksum, tokenizer_fingerprint(tokenizer))
    return tokenizer.to(chosen)


def tokenizer_fingerprint(tokenizer: BinaryAutoencoder) -> str:
    """SHA-256 over a tokenizer's weights, as `Pretrained.fingerprint` for a whole model: 64 hexadecimal digits.

    It identifies the tokenizer of codes and generators, wherever its folder is.
    """
    return fingerprint(_joined(tokenizer.state_dict(), {}))


# ---- helpers


def empty_modules(config: ModelConfig) -> tuple[BinaryAutoencoder, BiGR]:
    """Tokenizer and generator of an architecture, without memory for weights."""
    with without_weights():
        return BinaryAutoencoder(config.tokenizer), BiGR(config.generator)


def _usable_device(device: torch.device | str | None) -> torch.device | None:
    """A device that is there; None stays None. Raises ValueError for another one."""
    return None if device is None else choose_device(device)


def _usable_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """A number type that networks compute in; None stays None. Raises ValueError for another one."""
    known = (*STORED, torch.float64)
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(map(str, known))}; choose one, or leave it out")
    return dtype


def _joined(tokenizer: Mapping[str, Tensor], generator: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights, by the names that enter the fingerprint."""
    parts = (("tokenizer", tokenizer), ("generator", generator))
    return {f"{part}.{key}": value for part, state in parts for key, value in state.items()}


def _check_sum(folder: Path, recorded: str | None, found: str) -> None:
    if recorded is not None and recorded != found:
        raise ValueError(
            f"{folder}: the weights are damaged or were replaced: their SHA-256 is {found[:12]}…, {CONFIG_FILE} says "
            f"{recorded[:12]}…; download the folder again, or rewrite it with bigr_repr.save"
        )
