"""Downloads the authors' released files and reads weights and architecture from them. Knows no other format."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigr_repr.checkpoints.architecture import infer_generator, infer_tokenizer
from bigr_repr.checkpoints.catalog import (
    HUB_PAGE,
    RELEASE_REPOSITORY,
    RELEASE_TRAINING,
    RELEASED,
    RELEASED_SHA256,
    imagenet_class_names,
)
from bigr_repr.checkpoints.hub import quiet_hub
from bigr_repr.config import ModelConfig
from bigr_repr.system.files import sha256_of

log = logging.getLogger(__name__)

State = dict[str, Any]  # tensors by name; other objects only in files that `assign` will refuse

_DENOISER = "denoise_mlp."
_COPY = "diffusion_processor._denoise_fn."
_SCHEDULE = "diffusion_processor.scheduler."
_IMAGENET_CLASSES = 1000


class ReleasedWeights(NamedTuple):
    """Content of the two released files, under this package's tensor names."""

    config: ModelConfig
    tokenizer: State
    generator: State


# ---- fetching


def parse_hub_name(name: str) -> tuple[str, str]:
    """ "hf:owner/repo/VARIANT" -> ("owner/repo", "VARIANT"). Raises ValueError for another form or variant."""
    parts = name.removeprefix("hf:").split("/")
    if len(parts) != 3 or not all(parts) or parts[2] not in RELEASED:
        variants = ", ".join(RELEASED)
        raise ValueError(
            f"model={name!r} is unknown; the form is hf:owner/repo/VARIANT, with VARIANT one of {variants}; "
            "hf:user/name is any other user's model folder"
        )
    return f"{parts[0]}/{parts[1]}", parts[2]


def fetch(name: str, *, local_files_only: bool = False) -> tuple[Path, Path]:
    """The tokenizer file and the generator file of "hf:owner/repo/VARIANT", downloaded unless the hub's cache has them.

    Downloads are compared with the release's checksums, where known. Raises ValueError for files that differ
    from the release's, and ConnectionError, which says in one line what to download from where.
    """
    repository, variant = parse_hub_name(name)
    files = RELEASED[variant].tokenizer, RELEASED[variant].generator
    try:
        import huggingface_hub

        with quiet_hub():
            known = [file for file in files if _cached(repository, file) is not None]
            tokenizer, generator = (
                Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=local_files_only))
                for file in files
            )
    except Exception as error:  # the client raises many kinds, also its transport's; one remedy for all
        local = [Path(file).name for file in files]
        raise ConnectionError(
            f"{name} could not be fetched ({_reason(error)}); download {files[0]} and {files[1]} from "
            f"{HUB_PAGE.format(repository)} and run: bigr-repr models import --tokenizer {local[0]} "
            f"--generator {local[1]} --out FOLDER, or in Python: "
            f'bigr_repr.load_official(tokenizer="{local[0]}", generator="{local[1]}")'
        ) from error
    if repository == RELEASE_REPOSITORY:
        for file, path in zip(files, (tokenizer, generator), strict=True):
            if file not in known:
                _require_pin(file, path)
    return tokenizer, generator


def _cached(repository: str, file: str) -> str | None:
    """Path of a hub file in the cache."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, file)
    return found if isinstance(found, str) else None


def _require_pin(file: str, path: Path) -> None:
    """Removes a download that is not the release's file, and raises ValueError."""
    pin = RELEASED_SHA256.get(file)
    if pin is None or (found := sha256_of(path)) == pin:
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise ValueError(f"{file}: its SHA-256 is {found[:12]}… instead of the release's {pin[:12]}…; try again")


def in_cache(name: str) -> bool:
    """Whether both files of "hf:owner/repo/VARIANT" are in the hub's cache, so that `fetch` needs no network."""
    repository, variant = parse_hub_name(name)
    files = RELEASED[variant].tokenizer, RELEASED[variant].generator
    return all(_cached(repository, file) is not None for file in files)


def _reason(error: Exception) -> str:
    if type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return "no connection, or offline mode, and the files are not in the cache"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---- checking


def verify_released(path: Path) -> None:
    """Read a whole file and compare it with its own checksums and, if named as in the release, with the release's.

    Raises ValueError if its content does not match its own checksums, OSError if it cannot be read; warns if an
    intact file is not the released one.
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged ({error}); download it again") from error
        if broken is not None:
            raise ValueError(f"{path}: damaged, {broken} does not match its checksum; download it again")
    known = {Path(name).name: digest for name, digest in RELEASED_SHA256.items()}.get(path.name)
    if known is None:
        return
    found = sha256_of(path)
    if found != known:
        log.warning(
            "%s is not the file of that name in the release: its SHA-256 is %s, the release's is %s", path, found, known
        )


def _require_sizes(path: Path) -> None:
    """Raises ValueError for a zip file that claims more content than it has bytes: tensors are stored uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            stated = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return  # torch.load will report it
    if stated > path.stat().st_size:
        raise ValueError(f"{path}: claims {stated:,} bytes of content, more than it has; download it again")


# ---- reading


def read_released(
    tokenizer: Path, generator: Path, *, heads: int | None = None, name: str | None = None
) -> ReleasedWeights:
    """Weights and architecture from a released tokenizer file (`*.th`) and generator file (`*.pt`).

    Tensors stay in the memory-mapped files and are read on first use. `heads` is dim / 64 unless given, because shapes
    do not reveal it. Files named as in the release get the release's name, class names and training record.

    Raises OSError for files that cannot be opened, ValueError for anything but a released model. The tensors are not
    yet checked against the architecture.
    """
    tokenizer_state = _tokenizer_state(tokenizer)
    generator_state, steps = _generator_state(generator)
    with _naming(generator):
        generator_config = infer_generator(generator_state, steps=steps, heads=heads)
    with _naming(tokenizer):
        tokenizer_config = infer_tokenizer(tokenizer_state, grid=generator_config.grid)
    variant = next((key for key, files in RELEASED.items() if Path(files.generator).name == generator.name), None)
    training: Mapping[str, Any] = {"data": f"unknown; imported from {tokenizer.name} and {generator.name}"}
    if variant is not None:
        training = RELEASE_TRAINING
    with _naming(f"{tokenizer} and {generator} do not belong together"):
        config = ModelConfig(
            name=name or (f"bigr-{variant}" if variant else generator.stem),
            tokenizer=tokenizer_config,
            generator=generator_config,
            class_names=imagenet_class_names() if variant and generator_config.classes == _IMAGENET_CLASSES else (),
            training=training,
        )
    return ReleasedWeights(config, tokenizer_state, {_from_released(k): v for k, v in generator_state.items()})


@contextmanager
def _naming(files: object) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{files}: {error}") from error


def tokenizer_file_name(name: str) -> str:
    """The name of one of our tokenizer tensors in the released file."""
    return "ae." + name


def generator_file_name(name: str) -> str:
    """The name of one of our generator tensors in the released file."""
    if name.startswith("diffusion.denoiser."):
        return _DENOISER + name.removeprefix("diffusion.denoiser.")
    return name.removeprefix("transformer.")


def _from_released(name: str) -> str:
    if name.startswith(_DENOISER):
        return "diffusion.denoiser." + name.removeprefix(_DENOISER)
    return "transformer." + name


def _read(path: Path) -> dict[Any, Any]:
    """The dictionary in a PyTorch file: tensors only, no code is run, contents are memory-mapped."""
    if path.is_file() and zipfile.is_zipfile(path):
        _require_sizes(path)
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        remedy = f"download it from {HUB_PAGE.format(RELEASE_REPOSITORY)}, or pass the folder it is in"
        raise FileNotFoundError(f"{path}: no such file; {remedy}") from error
    try:
        # Files older than the zip format cannot be memory-mapped.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: damaged, or it holds Python objects besides tensors, which could run code and are not opened; "
            "download it again from the authors' page"
        ) from error
    except Exception as error:  # torch.load raises whatever its parsers raise, also OSError for a truncated file
        raise ValueError(f"{path}: damaged, or not a PyTorch file; download it again") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}; expected a dictionary of tensors")
    return data


def _tokenizer_state(path: Path) -> State:
    data = _read(path)
    wanted = {str(key)[3:]: value for key, value in data.items() if str(key).startswith("ae.")}
    if not wanted:
        raise ValueError(f"{path}: holds no tensor named ae.*, so it is not a released tokenizer{_hint(data)}")
    # The decoder's logsigma branch, the discriminator and the perceptual network are not part of the model.
    return {key: value for key, value in wanted.items() if not key.startswith("generator.logsigma.")}


def _generator_state(path: Path) -> tuple[State, int | None]:
    """Tensors by their names in the file, the transcoder's only once; and the number of diffusion steps."""
    data = _read(path)
    ema = data.get("ema")
    if not isinstance(ema, dict):
        raise ValueError(f'{path}: has no weights under "ema", so it is not a released generator{_hint(data)}')
    state = {str(key): value for key, value in ema.items()}
    schedule = {key: state.pop(key) for key in list(state) if key.startswith(_SCHEDULE)}
    twins = {key: twin for key in state if (twin := _twin(key)) in state}
    differing = [key for key, twin in twins.items() if not _same(state.pop(key), state[twin])]
    if differing:
        raise ValueError(
            f"{path}: the transcoder's weights occur twice and differ ({len(differing)} tensors, first {differing[0]}, "
            f"against {_DENOISER}*), so it is unclear which to use"
        )
    return state, _diffusion_steps(schedule, path)


def _hint(data: Mapping[Any, Any]) -> str:
    found = ", ".join(sorted(map(str, data))[:3])
    return f" (first keys: {found}); tokenizer files end in .th, generator files in .pt"


def _twin(name: str) -> str | None:
    """The name in the transcoder's first copy of a tensor from the second."""
    return _DENOISER + name.removeprefix(_COPY) if name.startswith(_COPY) else None


def _same(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _diffusion_steps(schedule: State, path: Path) -> int | None:
    """T from the noise schedule's buffers, which must be the linear schedule k_t = 1 - t/T; None without buffers."""
    keep = schedule.get(_SCHEDULE + "k_final")
    if not isinstance(keep, Tensor):
        lengths = {len(value) for value in schedule.values() if isinstance(value, Tensor) and value.ndim == 1}
        return max(lengths) - 1 if lengths and max(lengths) > 1 else None
    steps = keep.numel() - 1
    linear = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if keep.ndim != 1 or steps < 1 or not torch.allclose(keep.double(), linear, atol=1e-3):
        raise ValueError(f"{path}: {_SCHEDULE}k_final is not the schedule 1 - t/T that this package implements")
    return steps
