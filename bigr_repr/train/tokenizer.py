"""Trains the binary autoencoder. Knows nothing of the generator.

Source: BiGR section 3.1 and its appendix; L1 + perceptual + adaptive hinge GAN as in VQGAN (arXiv 2012.09841).
"""

# B batch, K bits per token, h w token grid

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
from bigr_repr.config import TokenizerConfig
from bigr_repr.datasets import ImageSet
from bigr_repr.models.bits import bit_entropy
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.batches import Batch, batches, check_crop, views_of
from bigr_repr.train.ema import ExponentialAverage
from bigr_repr.train.frozen import float_fingerprint
from bigr_repr.train.loop import Run, train
from bigr_repr.train.losses import PatchDiscriminator, PerceptualDistance, adaptive_weight, augment, hinge_discriminator
from bigr_repr.train.muon import Muon
from bigr_repr.train.pace import decided
from bigr_repr.train.settings import TrainSettings, identify, objective_of

PIXEL_LOSSES = ("l1", "l2")
OPTIMIZERS = ("adam", "muon")
_TRIED = 4  # images in the speed trial
_SMALLEST_JUDGED = 24  # pixels; below this, no patch is left after three halvings


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """How a tokenizer is trained. Defaults are the paper's.

    `pixel_loss` is "l1", or "l2" (mean squared error, which favors PSNR). `perceptual` names a timm backbone, or is
    None for no perceptual loss; `perceptual_weights` is a file of its weights (None: timm's). `gan_start` is the step
    at which the discriminator starts, or None for never; `sample_bits` draws bits instead of thresholding them;
    `bit_entropy` weights a term that keeps every bit in use (mean entropy of each bit over the batch, in bits).
    `crop` is the side of random squares cut from the pictures; `least_area`, below 1, the minimum share of a picture's
    area in random crops, which are resized; `mirror` mirrors every other one.
    `optimizer` is "adam", or "muon" (orthogonalized momentum, at the same rate) for the kernels between feature maps.
    """

    pixel_loss: str = "l1"
    perceptual: str | None = "vgg16.tv_in1k"
    perceptual_weight: float = 1.0
    perceptual_weights: str | None = None
    gan_start: int | None = 30_000
    gan_width: int = 64
    sample_bits: bool = True
    bit_entropy: float = 0.0
    crop: int | None = None
    mirror: bool = True
    least_area: float = 1.0
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if not self.perceptual_weight >= 0:  # so worded that NaN fails
            raise ValueError(f"perceptual_weight={self.perceptual_weight} must be at least 0")
        if self.pixel_loss not in PIXEL_LOSSES:
            raise ValueError(f"pixel_loss={self.pixel_loss!r} is unknown; choose one of {', '.join(PIXEL_LOSSES)}")
        if self.gan_start is not None and self.gan_start < 0:
            raise ValueError(f"gan_start={self.gan_start} must be at least 0; None: no discriminator")
        if not 0 < self.least_area <= 1:
            raise ValueError(f"least_area={self.least_area} is outside 0..1, 0 excluded; 1: whole images")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"crop={self.crop} must be at least 1; None: whole images")


def bit_usage(probabilities: Tensor) -> dict[str, Tensor]:
    """How well the bits are used: (B, K, h, w) in [0, 1] -> scalars.

    `bit_entropy`: mean over the K bits of the entropy, in bits, of the bit's overall rate (1 is best); `bit_certainty`:
    mean |2p - 1|; `dead_bits`: number of bits that are the same in at least 99.9 % of positions.
    """
    rate = (probabilities.detach() > 0.5).float().mean(dim=(0, 2, 3))
    return {
        "bit_entropy": bit_entropy(rate),
        "bit_certainty": (2 * probabilities.detach() - 1).abs().mean(),
        "dead_bits": ((rate < 0.001) | (rate > 0.999)).float().sum(),
    }


def make_optimizers(model: BinaryAutoencoder, optimizer: str) -> list[torch.optim.Optimizer]:
    """Adam for all weights, or Muon for the kernels between feature maps and Adam for the others."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "adam":
        return [torch.optim.Adam(trained, betas=(0.9, 0.99))]
    ends = {id(p) for p in model.quantize.parameters()}
    kernels = [p for p in trained if p.ndim == 4 and min(p.shape[:2]) > model.config.in_channels and id(p) not in ends]
    theirs = {id(p) for p in kernels}
    others = [p for p in trained if id(p) not in theirs]
    return [torch.optim.Adam(others, betas=(0.9, 0.99)), Muon(kernels)]


class TokenizerTask:
    """See `bigr_repr.train.loop.Task`."""

    def __init__(self, model: BinaryAutoencoder, recipe: TokenizerRecipe, shown: Tensor) -> None:
        check_crop(recipe.crop, model.config.image_size)
        self.modules: list[nn.Module] = [model]
        self.optimizers: list[torch.optim.Optimizer] = make_optimizers(model, recipe.optimizer)
        self._own = len(self.optimizers)
        self._config, self._recipe, self._shown = model.config, recipe, shown
        self._last_layer = model.last_layer
        self._perceptual = None
        self.perceptual_sha256 = ""
        if recipe.perceptual is not None:
            self._perceptual = PerceptualDistance(recipe.perceptual, weights=recipe.perceptual_weights)
            self.perceptual_sha256 = float_fingerprint(self._perceptual.network)
        if recipe.gan_start is not None:
            side = recipe.crop or model.config.image_size
            if side < _SMALLEST_JUDGED:
                remedy = "give larger images or crops, or train without it (gan_start=None)"
                raise ValueError(f"training squares of {side} px are too small for the discriminator ({remedy})")
            discriminator = PatchDiscriminator(model.config.in_channels, recipe.gan_width)
            self.modules.append(discriminator)
            self.optimizers.append(torch.optim.Adam(discriminator.parameters(), betas=(0.9, 0.99)))

    def update(self, batch: Batch, step: int, run: Run) -> dict[str, Tensor]:
        assert batch.images is not None
        # Channels last: on a CPU, a step in bfloat16 takes half the time. The convolutions follow their input.
        images = (batch.images.float() / 255).contiguous(memory_format=torch.channels_last)
        model = self.modules[0].train()
        with run.accelerator.autocast():
            decoded, probabilities, _ = model(images, sample=self._recipe.sample_bits)
            difference = decoded.float() - images
            loss = difference.abs().mean() if self._recipe.pixel_loss == "l1" else difference.square().mean()
            scalars = {self._recipe.pixel_loss: loss.detach(), **bit_usage(probabilities.float())}
            if self._perceptual is not None:
                self._perceptual.to(images.device)
                distance = self._perceptual(decoded.float(), images)
                scalars["perceptual"] = distance.detach()
                loss = loss + self._recipe.perceptual_weight * distance
            if self._recipe.bit_entropy:
                rate = probabilities.float().mean(dim=(0, 2, 3))
                loss = loss - self._recipe.bit_entropy * bit_entropy(rate)
            adversarial = self._recipe.gan_start is not None and step >= self._recipe.gan_start
            if adversarial:
                discriminator = self.modules[1].requires_grad_(False)
                fooled = -discriminator(augment(decoded.float())).mean()
                weight = adaptive_weight(loss, fooled, self._last_layer)
                scalars |= {"gan": fooled.detach(), "gan_weight": weight}
                loss = loss + weight * fooled
        scalars["loss"] = run.check(loss, step)
        scalars["gradient_norm"] = run.descend(loss, self.optimizers[: self._own], model, step)
        if adversarial:
            scalars["discriminator"] = self._judge(images, decoded.detach().float(), step, run)
        return scalars

    def _judge(self, images: Tensor, decoded: Tensor, step: int, run: Run) -> Tensor:
        discriminator = self.modules[1].requires_grad_(True).train()
        with run.accelerator.autocast():
            # One pass over both halves: with DistributedDataParallel, a second pass would corrupt the buffers.
            real, fake = discriminator(torch.cat([augment(images), augment(decoded)])).chunk(2)
            loss = hinge_discriminator(real.float(), fake.float())
        run.check(loss, step)
        run.descend(loss, self.optimizers[self._own :], discriminator, step)
        return loss.detach()

    @torch.no_grad()
    def samples(self, weights: dict[str, Tensor]) -> Tensor:
        """Originals above their reconstructions."""
        from torchvision.utils import make_grid

        model = BinaryAutoencoder(self._config)
        model.load_state_dict(weights)
        images = self._shown.float() / 255
        decoded = model.decode(model.encode(images)).clamp(0, 1)
        grid: Tensor = make_grid(torch.cat([images, decoded]), nrow=len(images), padding=2)
        return (grid * 255).round().to(torch.uint8)


def _trial(model: BinaryAutoencoder, device: torch.device) -> Callable[[], None]:
    """Forward and backward on random images, without the losses from other networks."""
    side, channels = model.config.image_size, model.config.in_channels
    images = torch.rand(_TRIED, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
    model.to(device).train()

    def step() -> None:
        (model(images)[0].float() - images).square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def train_tokenizer(
    images: ImageSet,
    config: TokenizerConfig,
    settings: TrainSettings,
    recipe: TokenizerRecipe | None = None,
    *,
    initial: BinaryAutoencoder | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    finished: Callable[[int, ExponentialAverage], bool] | None = None,
) -> BinaryAutoencoder:
    """Train a tokenizer on `images` and return it with averaged weights, in eval mode.

    `initial`: weights to start from, whose fingerprint is in the run's record. Checkpoints, logs and reconstruction
    grids go to `settings.out`, from which an interrupted run resumes. `finished`: as in `bigr_repr.train.loop.train`.
    """
    recipe = recipe or TokenizerRecipe()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = BinaryAutoencoder(config)
        if initial is not None:
            model.load_state_dict(initial.state_dict())
        seed = -settings.seed % 2**31
        shown = next(batches(images, batch_size=8, seed=seed, first_step=0, image_size=config.image_size, flip=False))
        assert shown.images is not None
        task = TokenizerTask(model, recipe, shown.images)
    settings = decided(settings, partial(_trial, model))
    record = identify(
        settings, task="tokenizer", config=asdict(config), perceptual_sha256=task.perceptual_sha256,
        objective=objective_of(replace(recipe, perceptual_weights=None)),
        images=len(images), images_fingerprint=images.fingerprint(),
        initial="" if initial is None else tokenizer_fingerprint(initial),
    )  # fmt: skip
    stream = partial(batches, images, image_size=config.image_size, crop=recipe.crop, **views_of(recipe))
    weights = train(task, stream, settings, record=record, on_step=on_step, finished=finished)
    trained = BinaryAutoencoder(config)
    trained.load_state_dict(weights)
    return trained.eval()
