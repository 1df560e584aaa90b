"""One call of an application: its options, batches and labels. Knows nothing of what is painted or why."""

# B images of the call, N tokens, K bits per token, D width, S side of the canvas in pixels

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, TypedDict, cast

import torch
from torch import Tensor

from bigr_repr.checkpoints.classes import class_number, has_classes
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.checkpoints.prompts import read_captions
from bigr_repr.models.transformer import trimmed
from bigr_repr.sampling.canvas import bit_logits, decode, encode
from bigr_repr.sampling.noise import Draws, SeededDraws
from bigr_repr.sampling.prompts import Prompt, prompt_list
from bigr_repr.sampling.sampler import Callback, Iteration, sample_codes
from bigr_repr.sampling.settings import FAST, SamplingSettings, usual_settings

Labels: TypeAlias = int | str | Sequence[int | str] | Tensor  # by number or name
Rounds: TypeAlias = Callable[[Tensor, Draws], list[Tensor]]

TOKENS_AT_ONCE = 8192  # on an accelerator: 32 images of 16x16 tokens


class Options(TypedDict, total=False):
    """Keywords of every application: the fields of `SamplingSettings` (steps, order, guidance, ...) and these.

    seed        0 by default. Image i of a seed is the same however many others are requested: bit for bit on a CPU,
                elsewhere up to rounding differences between batch sizes.
    first       number of the call's first image, 0 by default: to continue where an earlier call stopped.
    batch_size  images computed together; by default 1 on a CPU, where more gains little in float32, else what fits
                easily. In bfloat16 on a CPU with AMX, 32 halves the time per image, but results may differ in some
                bits.
    prompt      what a text model should draw, instead of labels: a text, or several, one per image or cycled through.
    negative    what guidance steers away from, instead of no caption: one text for all images.
    settings    a `SamplingSettings` to start from; the other keywords change its fields.
    callback    called with an `Iteration` after each iteration of each batch.

    guidance_scale and num_inference_steps are aliases of guidance and steps.
    """

    seed: int
    first: int
    batch_size: int | None
    prompt: Prompt | None
    negative: str | None
    settings: SamplingSettings | None
    callback: Callback | None
    steps: int
    order: str
    schedule: str
    diffusion_steps: int | None
    confidence_steps: int | None
    guidance: float | None
    guidance_schedule: str
    temperature: float
    gumbel: float
    gumbel_schedule: str
    deterministic: bool
    guidance_scale: float | None
    num_inference_steps: int


def given_options(values: Mapping[str, Any], *, fast: bool = False) -> Options:
    """The keywords of an application from user input; None means the library's default.

    fast: start from the fast preset.  Values whose names are not in `Options` are left out.
    """
    known = Options.__annotations__
    found: Any = {name: value for name, value in values.items() if name in known and value is not None}
    options: Options = found | ({"settings": FAST} if fast else {})
    return options


def at_least_one(name: str, value: int) -> int:
    """`value`, or ValueError unless it is a whole number of at least 1."""
    return _at_least(1, name, value)


def _at_least(least: int, name: str, value: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number of at least {least}")
    return int(value)  # JSON does not accept NumPy integers


def _by_number(pre: Pretrained, labels: Labels) -> Any:
    """Labels with names replaced by numbers."""
    if isinstance(labels, str):
        return class_number(pre.config, labels)
    if isinstance(labels, Sequence):
        return [class_number(pre.config, each) if isinstance(each, str) else each for each in labels]
    return labels


def check_loaded(pre: Pretrained) -> Pretrained:
    """Return `pre`; for a name, raise TypeError that says how to load the model."""
    if not isinstance(pre, Pretrained):
        raise TypeError(f"{pre!r} is not a loaded model; load one first: model = bigr_repr.load({str(pre)!r})")
    return pre


def class_numbers(pre: Pretrained, labels: Labels) -> Tensor:
    """Labels, numbers or names, as int64 (B,) on the CPU.

    Raises ValueError unless they are names or whole numbers in 0..C-1 of a model that was trained with classes.
    """
    if check_loaded(pre).config.generator.condition == "text":
        raise ValueError(f"labels={labels!r}: {pre.config.name} draws from captions, not classes; pass a prompt")
    if not has_classes(pre.config):
        raise ValueError(
            f"labels={labels!r}: {pre.config.name} was trained without classes; leave out labels and guidance"
        )
    labels = _by_number(pre, labels)
    try:
        numbers = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels={labels!r} are not integers; give class numbers or names") from error
    if numbers.ndim > 1 or not numbers.numel() or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"labels={labels!r} is not an integer or a list of them; give class numbers or names")
    classes = pre.config.generator.classes
    wrong = sorted({n for n in numbers.view(-1).tolist() if not 0 <= n < classes})
    if wrong:
        raise ValueError(
            f"labels={wrong} is outside 0..{classes - 1} for {pre.config.name}; "
            f"see: bigr-repr models info {pre.config.name} --classes"
        )
    return numbers.view(-1).long().cpu()


def something_named(labels: Labels | None, options: Options) -> Labels | None:
    """The labels. Raises ValueError if neither labels nor a prompt are given."""
    if labels is None and options.get("prompt") is None:
        raise ValueError("labels=None: nothing says what to paint; give labels, or a prompt for a text model")
    return labels


def in_turn(count: int | None, given: int) -> Tensor:
    """The input that each of `count` images is made from, cycling through them; None: one of each."""
    count = given if count is None else at_least_one("count", count)
    if count < given:
        raise ValueError(f"count={count} is fewer than the {given} classes or images given; ask for {given} or more")
    return torch.arange(count) % given


class Job:
    """A model, the options of one call, and the loop over its batches.

    Raises TypeError for an unknown option and ValueError for an invalid value.
    """

    def __init__(self, pre: Pretrained, default: SamplingSettings, options: Options) -> None:
        changes = cast(dict[str, Any], dict(options))
        unknown = sorted(set(changes) - Options.__annotations__.keys())
        if unknown:
            raise TypeError(f"unknown options {unknown}; known are {sorted(Options.__annotations__)}")
        self.pre = check_loaded(pre)
        self.seed, self.first = (_at_least(0, name, changes.pop(name, 0)) for name in ("seed", "first"))
        self.callback: Callback | None = changes.pop("callback", None)
        self.prompts, self.negative = self._texts(changes.pop("prompt", None), changes.pop("negative", None))
        batch_size: int | None = changes.pop("batch_size", None)
        self.batch_size = self._usual_batch() if batch_size is None else at_least_one("batch_size", batch_size)
        start: SamplingSettings | None = changes.pop("settings", None)
        if not isinstance(start, SamplingSettings | None):
            raise TypeError(f"settings={start!r} is not a SamplingSettings")
        if start is None or start == FAST:
            start = usual_settings(pre.config.generator, default if start is None else start)
        self.settings = start.with_changes(changes)

    def with_changes(self, **changes: Any) -> Job:
        """The same with another `seed`, `callback` or `settings`."""
        changed = copy.copy(self)
        vars(changed).update(changes)
        return changed

    def _texts(self, prompt: Prompt | None, negative: str | None) -> tuple[list[str] | None, list[str] | None]:
        """The validated prompts, and the negative one."""
        if prompt is None:
            if negative is not None:
                raise ValueError(f"negative={negative!r} needs a prompt; give one, or leave it out")
            return None, None
        texts = prompt_list(prompt)
        if self.pre.config.generator.condition != "text":
            raise ValueError(
                f"prompt={texts[0]!r}: {self.pre.config.name} was trained with classes, not captions; name a class, "
                "or choose a model that bigr-repr train generator made from train captions"
            )
        return texts, None if negative is None else prompt_list([negative], "negative")

    def _usual_batch(self) -> int:
        if self.pre.device.type == "cpu":
            return 1
        return max(1, TOKENS_AT_ONCE // self.pre.config.generator.tokens)

    @property
    def _decoded(self) -> int:
        """Images decoded together: one on a CPU, where more gains nothing and changes rounding."""
        return 1 if self.pre.device.type == "cpu" else self.batch_size

    def conditions(self, labels: Labels | None) -> Tensor | None:
        """One condition per label, or per prompt of the call: (n, D) or (n, P, D); None without either.

        Raises ValueError for labels with a text model, and as `class_numbers`.
        """
        embed = self.pre.generator.transformer.condition_embedding
        if labels is not None:
            classes = class_numbers(self.pre, labels)
            return embed(classes.to(self.pre.device), len(classes)).detach()
        return None if self.prompts is None else self._read(self.prompts)

    def _read(self, texts: Sequence[str]) -> Tensor:
        embed = self.pre.generator.transformer.condition_embedding
        return embed(read_captions(self.pre, texts), len(texts)).detach()

    @functools.cached_property
    def _away(self) -> Tensor | None:
        """The condition of the negative prompt (1, P, D); None if there is none."""
        return None if self.negative is None else self._read(self.negative)

    def repaint(
        self,
        images: Tensor,
        masked: Tensor,
        condition: Tensor | None,
        count: int | None,
        *,
        rounds: Rounds | None = None,
        trust: Tensor | None = None,
    ) -> Tensor:
        """Fill the masked tokens of images (b, 3, S, S), cycling through them: (B, 3, S, S). See `in_turn` and `run`.

        images, masked (b, N) and condition (see `conditions`) belong together; a single one is used with all others.
        trust: (N,), the weight of the images' own bits of masked tokens: 0 none, 1 as much as the model's prediction.
        """
        sizes = [len(images), len(masked), 1 if condition is None else len(condition)]
        total = max(sizes)
        if set(sizes) - {1, total}:
            found = (
                f"{sizes[0]} images, {sizes[1]} masks and {sizes[2]} {'labels' if self.prompts is None else 'prompts'}"
            )
            raise ValueError(f"{found} do not match; give one of each, or equally many")
        self.check(condition is not None)
        with torch.inference_mode():
            read = encode if trust is None else bit_logits
            codes = torch.cat([read(self.pre, part) for part in torch.split(images, self.batch_size)])
        prior = None
        if trust is not None:
            prior, codes = codes * trust.to(codes)[:, None], (codes > 0).float()
        which = in_turn(count, total)
        given = (codes, masked, condition, prior)
        spread = [t if t is None else t.expand(total, *t.shape[1:])[which.to(t.device)] for t in given]
        every_code, every_mask, every_condition, every_prior = spread
        assert every_mask is not None
        return self.run(every_mask, codes=every_code, condition=every_condition, prior=every_prior, rounds=rounds)

    def check(self, conditional: bool) -> None:
        """Raise ValueError for settings that the model does not support, before any work."""
        self.settings.check(self.pre.config.generator, self.pre.config.name)
        self.settings.resolved(self.pre.config.generator, conditional)

    def run(self, masked: Tensor, **how: Any) -> Tensor:
        """Fill the masked tokens and decode: (B, 3, S, S). Arguments as in `filled`."""
        return self.decoded(self.filled(masked, **how))

    def decoded(self, codes: Tensor) -> Tensor:
        """Images (B, 3, S, S) of codes (B, N, K)."""
        with torch.inference_mode():
            images = torch.cat([decode(self.pre, rows) for rows in torch.split(codes, self._decoded)])
        return images.clone()  # outside inference mode: an ordinary tensor

    def filled(
        self,
        masked: Tensor,
        *,
        codes: Tensor | None = None,
        condition: Tensor | None = None,
        prior: Tensor | None = None,
        numbers: Sequence[int] | None = None,
        by_place: bool = False,
        rounds: Rounds | None = None,
        before: int = 0,
    ) -> Tensor:
        """Fill the masked tokens, batch by batch: (B, N, K) of 0/1.

        numbers: the number of each image, which determines its noise; None: from `first` on.  prior, by_place: as in
        `sample_codes`.  rounds: gives the masks (B, N) to fill in sequence, if not just `masked`.
        before: number of images that the call has already drawn, for the callback.
        """
        total, done = len(masked), []
        numbers = range(self.first, self.first + total) if numbers is None else numbers
        for start in range(0, total, self.batch_size):
            part = slice(start, start + self.batch_size)
            draws, images = SeededDraws(self.seed, numbers[part]), tuple(range(before, before + total)[part])
            filled = None if codes is None else codes[part]
            masks = [masked[part]] if rounds is None else rounds(masked[part], draws)
            for index, mask in enumerate(masks):
                filled = sample_codes(
                    self.pre.generator, mask, settings=self.settings, draws=draws, codes=filled,
                    condition=None if condition is None else trimmed(condition[part]), negative=self._away,
                    prior=None if prior is None else prior[part], by_place=by_place,
                    callback=self._report(images, index, len(masks)),
                )  # fmt: skip
            assert filled is not None
            done.append(filled)
        return torch.cat(done)

    def _report(self, images: tuple[int, ...], index: int, rounds: int) -> Callback | None:
        """The callback, with the numbers of these images and iterations counted over all rounds."""
        callback, steps = self.callback, self.settings.steps
        if callback is None:
            return None

        def report(at: Iteration) -> None:
            iteration, iterations = at.iteration + index * steps, rounds * steps
            callback(at._replace(iteration=iteration, iterations=iterations, images=images))

        return report
