"""Laws of the sampler: known tokens stay, counts follow the schedule, batches change nothing; the released numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sampling_model import (
    GENERATOR,
    K,
    N,
    Threshold,
    Watch,
    all_masked,
    classes,
    counted_passes,
    counted_rows,
    draw,
    some_codes,
    some_masks,
    tiny_model,
)
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained, load_official
from bigr_repr.models.bigr import masked_count
from bigr_repr.models.bits import bit_entropy
from bigr_repr.sampling import SamplingSettings, generate, sample_codes
from bigr_repr.sampling.chain import Chain
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.orders import bit_margin, halton_order
from bigr_repr.sampling.settings import FIXED_ORDERS, ORDERS, RANKED_ORDERS

GOLDEN = Path(__file__).parent / "golden"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


@pytest.fixture(scope="module")
def official() -> Pretrained:
    return load_official(tokenizer=GOLDEN / "binaryae_ema.th", generator=GOLDEN / "bigr.pt", image_size=64, heads=4)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


# ---- the released code's numbers
def test_chain_matches_the_released_code(official: Pretrained, expected: dict[str, Tensor]) -> None:
    wanted = expected["transcoder.probs.cfg2.5"]
    rows = wanted.flatten(0, 1)
    condition = expected["cond"].view(2, len(rows), -1)
    got = Chain(official.generator.diffusion, 100)(condition, lambda n: torch.full((n, *rows.shape), 0.5), guidance=2.5)
    torch.testing.assert_close(got.view_as(wanted), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [4, 8])
def test_generation_matches_the_released_code(official: Pretrained, expected: dict[str, Tensor], steps: int) -> None:
    got = sample_codes(
        official.generator,
        all_masked(2),
        settings=SamplingSettings(steps=steps, order="margin", gumbel=0, guidance=2.5),
        draws=Threshold(),
        condition=classes(official.generator, expected["labels"].tolist()),
    )
    assert torch.equal(got, expected[f"generate.codes.iters{steps}"])


def test_interpolation_matches_the_released_code(official: Pretrained, expected: dict[str, Tensor]) -> None:
    first, second = classes(official.generator, [1, 3]), classes(official.generator, [2, 0])
    got = sample_codes(
        official.generator,
        all_masked(2),
        settings=SamplingSettings(steps=4, order="margin", gumbel=0, guidance=2.5),
        draws=Threshold(),
        condition=0.3 * first + 0.7 * second,
    )
    assert torch.equal(got, expected["generate.interpolated.codes"])


# ---- laws
@pytest.mark.parametrize("order", ORDERS)
def test_known_tokens_never_change_and_nothing_is_left_over(pre: Pretrained, order: str) -> None:
    counts = [0, 1, 7, N]
    codes, masked, watch = some_codes(4), some_masks(counts), Watch()
    before = codes.clone(), masked.clone()
    got = draw(pre, [0, 1, 2, 3], masked, order=order, steps=6, codes=codes, callback=watch)
    assert torch.equal(codes, before[0])
    assert torch.equal(masked, before[1])
    assert torch.equal(got[~masked], codes[~masked])
    assert ((got == 0) | (got == 1)).all()
    assert watch.masked == [[masked_count(i, 6, m) for m in counts] for i in range(1, 7)]
    for earlier, later in pairwise(watch.seen):  # what is made is never made again
        assert not (later.masked & ~earlier.masked).any()
        made = ~earlier.masked
        assert torch.equal(later.codes[made], earlier.codes[made])


@pytest.mark.parametrize("order", ["entropy", "halton"])
def test_what_is_masked_does_not_matter(pre: Pretrained, order: str) -> None:
    masked = some_masks([9])
    one = torch.where(masked[:, :, None], 1.0, some_codes(1))
    zero = torch.where(masked[:, :, None], 0.0, some_codes(1))
    assert torch.equal(*(draw(pre, [1], masked, order=order, codes=c) for c in (one, zero)))


def test_all_known_is_the_identity_and_runs_nothing(pre: Pretrained) -> None:
    codes = some_codes(2)
    with counted_passes(pre) as passes:
        got = draw(pre, [0, 1], torch.zeros(2, N, dtype=torch.bool), codes=codes)
    assert torch.equal(got, codes)
    assert not passes


def test_iterations_that_unmask_nothing_cost_nothing(pre: Pretrained) -> None:
    with counted_passes(pre) as passes:
        draw(pre, None, some_masks([3]), steps=N, codes=some_codes(1))
    assert len(passes) == 3


@pytest.mark.parametrize("order", ["entropy", "random"])
def test_guidance_one_is_the_conditional_pass_and_not_doubled(pre: Pretrained, order: str) -> None:
    def guided(guidance: float) -> tuple[Tensor, list[int]]:
        with counted_passes(pre) as passes:
            return draw(pre, [1, 2, 3], all_masked(3), order=order, guidance=guidance), passes

    one, passes = guided(1)
    assert passes == [3] * 4
    less, passes = guided(0.0)
    assert torch.equal(one, less)
    # A hair above one takes both passes and must come to the same.
    more, passes = guided(1 + 1e-9)
    assert passes == [6] * 4
    assert torch.equal(one, more)
    assert not torch.equal(one, guided(4.0)[0])


def test_no_class_is_one_pass_and_equals_the_row_for_it(pre: Pretrained) -> None:
    with counted_passes(pre) as passes:
        free = draw(pre, None, all_masked(2))
    assert passes == [2] * 4
    null = GENERATOR.classes
    assert torch.equal(free, draw(pre, [null, null], all_masked(2), guidance=3.0))


@pytest.mark.parametrize("order", RANKED_ORDERS)
def test_chain_runs_for_masked_tokens_only(pre: Pretrained, order: str) -> None:
    with counted_rows(pre) as rows:
        draw(pre, [1], all_masked(1), order=order, diffusion_steps=3)
    assert rows == [masked_count(i, 4, N) for i in range(4) for _ in range(3)]


@pytest.mark.parametrize("order", FIXED_ORDERS)
def test_fixed_orders_run_the_chain_for_the_chosen_only(pre: Pretrained, order: str) -> None:
    with counted_rows(pre) as rows:
        draw(pre, [1], all_masked(1), order=order, diffusion_steps=3)
    assert sum(rows) == 3 * N


def test_a_short_chain_ranks_and_the_full_chain_runs_for_the_chosen(pre: Pretrained) -> None:
    with counted_rows(pre) as rows:
        draw(pre, [1], all_masked(1), diffusion_steps=6, confidence_steps=2)
    ranked = sum(masked_count(i, 4, N) for i in range(3))  # the last iteration takes all that is left
    assert sum(rows) == 2 * ranked + 6 * N


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(3))
def test_batch_of_one_equals_its_row_in_a_batch(pre: Pretrained, order: str, seed: int) -> None:
    counts, labels = [N, 3, 11, 0, N, 8], [0, 1, 2, 3, 4, 1]
    codes, masked = some_codes(6), some_masks(counts)
    together = draw(pre, labels, masked, codes=codes, order=order, seed=seed)
    for i in range(6):
        part = slice(i, i + 1)
        alone = draw(pre, labels[part], masked[part], [i], codes=codes[part], order=order, seed=seed)
        assert torch.equal(alone, together[part])


@pytest.mark.parametrize("objective", ["flip", "x0", "bce"])
@pytest.mark.parametrize("order", ["entropy", "raster"])
def test_every_objective_samples(objective: str, order: str) -> None:
    pre = tiny_model(objective=objective)
    with counted_rows(pre) as rows:
        got = draw(pre, [1, 2], all_masked(2), order=order, diffusion_steps=5)
    assert ((got == 0) | (got == 1)).all()
    if objective == "bce":  # one call a token and iteration
        assert sum(rows) == 2 * (N if order == "raster" else sum(masked_count(i, 4, N) for i in range(4)))


def test_objective_without_diffusion_gives_the_denoisers_answer() -> None:
    diffusion = tiny_model(objective="bce").generator.diffusion
    condition = torch.randn(1, 9, GENERATOR.dim, generator=torch.Generator().manual_seed(0))
    got = Chain(diffusion, 5)(condition, lambda n: torch.rand(n, 9, K))
    with torch.no_grad():
        logits = diffusion.denoiser(torch.full((9, K), 0.5), torch.full((9,), diffusion.steps), condition[0])
    torch.testing.assert_close(got, torch.sigmoid(logits))


def test_chain_starts_from_fair_coins_and_both_halves_see_the_same(pre: Pretrained) -> None:
    seen: list[Tensor] = []
    embedder = pre.generator.diffusion.denoiser.x_embedder
    handle = embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    uniform = torch.rand(2, 40, K, generator=torch.Generator().manual_seed(0))
    Chain(pre.generator.diffusion, 2)(torch.zeros(2, 40, GENERATOR.dim), lambda _: uniform, guidance=3.0)
    handle.remove()
    assert torch.equal(seen[0], torch.where(uniform[0] < 0.5, 1.0, -1.0))
    assert {step.shape for step in seen} == {(40, K)}


def test_chain_draws_the_clean_bits_of_a_perfect_denoiser() -> None:
    """If the denoiser knows x_0 for certain, every chain ends there, whatever its length."""
    diffusion = tiny_model(objective="x0").generator.diffusion
    clean = some_codes(1)[0]
    head = diffusion.denoiser.final_layer
    head.forward = lambda x, c: 200 * (2 * clean - 1)  # type: ignore[method-assign]
    for steps in (1, 2, 5, 16):
        got = Chain(diffusion, steps)(torch.zeros(1, N, GENERATOR.dim), lambda n: torch.rand(n, N, K))
        assert torch.equal(got, clean)


def test_bits_are_drawn_or_taken_by_threshold(pre: Pretrained) -> None:
    """Deterministic last bits: with draws that are all but one, Bernoulli gives zeros and the threshold does not."""

    class High(Threshold):
        def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
            return torch.full((), 1 - 2**-24).expand(blocks, sum(counts), width)

    drawn, taken = (
        sample_codes(pre.generator, all_masked(1), settings=SamplingSettings(steps=1, deterministic=flag), draws=High())
        for flag in (False, True)
    )
    assert drawn.sum() < taken.sum()


def test_temperature_near_zero_gives_certain_bits_and_a_high_one_fair_coins(pre: Pretrained) -> None:
    condition = torch.randn(1, 50, GENERATOR.dim, generator=torch.Generator().manual_seed(0))
    cold, warm = (
        Chain(pre.generator.diffusion, 3)(condition, lambda n: torch.full((n, 50, K), 0.5), temperature=t)
        for t in (1e-6, 1e6)
    )
    assert bit_entropy(cold).max() < 1e-3
    assert bit_entropy(warm).min() > 0.999


def test_low_precision_models_sample(pre: Pretrained) -> None:
    low = tiny_model().to(dtype=torch.bfloat16)
    got = draw(low, [1, 2], all_masked(2))
    assert got.dtype == torch.float32
    assert generate(low, [1], steps=2).dtype == torch.float32


@pytest.mark.parametrize("order", ORDERS)
def test_numbers_that_are_not_finite_are_an_error(order: str) -> None:
    broken = tiny_model()
    broken.generator.diffusion.denoiser.final_layer.linear.bias.data[0] = torch.nan
    with pytest.raises(RuntimeError, match="not finite in float32; are the weights damaged"):
        generate(broken, [1], steps=2, order=order)
    huge = tiny_model().to(dtype=torch.float16)
    huge.generator.diffusion.denoiser.c_embedder.weight.data.fill_(6e4)
    with pytest.raises(RuntimeError, match="not finite in float16; choose bfloat16 or float32"):
        generate(huge, [1], steps=2, order=order)


def test_a_model_in_training_mode_is_refused() -> None:
    training = tiny_model()
    training.generator.train()
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        generate(training, [1], steps=2)


def test_results_are_ordinary_tensors(pre: Pretrained) -> None:
    images = generate(pre, [1], steps=2)
    images.mul_(255)  # inference tensors would refuse
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"masked": torch.ones(2, N)}, "torch.bool"),
        ({"masked": torch.ones(2, N + 1, dtype=torch.bool)}, rf"expected \(B, {N}\)"),
        ({"masked": torch.zeros(2, N, dtype=torch.bool)}, "no codes are given"),
        ({"codes": torch.zeros(2, N, K + 1)}, rf"expected \(2, {N}, {K}\)"),
        ({"condition": torch.zeros(3, 32)}, r"expected \(2, 32\)"),
        ({"settings": SamplingSettings(steps=N + 1)}, f"{N + 1} iterations are more than the {N} tokens of this model"),
        ({"settings": SamplingSettings(steps=4, diffusion_steps=17)}, "diffusion_steps=17 is more than the 16"),
        ({"settings": SamplingSettings(steps=4, guidance=2.0)}, "guidance=2 has no class"),
    ],
)
def test_misshapen_arguments_are_refused(pre: Pretrained, changes: dict[str, Any], says: str) -> None:
    arguments = {
        "masked": all_masked(2),
        "settings": SamplingSettings(steps=4),
        "draws": SeededDraws(0, [0, 1]),
        **changes,
    }
    with pytest.raises(ValueError, match=says):
        sample_codes(pre.generator, **arguments)


# ---- orders


@pytest.mark.parametrize("order", ["raster", "halton"])
def test_fixed_orders_unmask_in_their_order(pre: Pretrained, order: str) -> None:
    watch = Watch()
    draw(pre, [1, 2], all_masked(2), order=order, steps=N, callback=watch)
    wanted = list(range(N)) if order == "raster" else list(halton_order(4))
    for at in watch.seen:
        for row in at.masked:
            open_ = wanted[N - int(row.sum()) :]
            assert sorted(open_) == row.nonzero().flatten().tolist()


def test_random_order_differs_from_image_to_image_and_seed_to_seed(pre: Pretrained) -> None:
    def places(seed: int) -> Tensor:
        watch = Watch()
        draw(pre, None, all_masked(2), order="random", steps=2, seed=seed, callback=watch)
        return watch.seen[0].masked

    assert not torch.equal(*places(0))
    assert not torch.equal(places(0), places(1))


@pytest.mark.parametrize("order", RANKED_ORDERS)
def test_ranked_orders_unmask_by_their_measure(pre: Pretrained, order: str) -> None:
    """Without noise, the first iteration keeps masked exactly the tokens that rank lowest."""
    watch = Watch()
    settings = SamplingSettings(steps=4, order=order, gumbel=0, diffusion_steps=5)
    condition = classes(pre.generator, [2])
    sample_codes(
        pre.generator, all_masked(1), settings=settings, draws=Threshold(), condition=condition, callback=watch
    )
    model, both = pre.generator, torch.cat([condition, classes(pre.generator, [5])])
    with torch.no_grad():
        hidden = model.transformer.condition(torch.zeros(2, N, K), both, all_masked(2))
    p = Chain(model.diffusion, 5)(hidden, lambda n: torch.full((n, N, K), 0.5), guidance=2.5)
    score = {"entropy": 1 - bit_entropy(p), "margin": bit_margin(p), "reversed": bit_entropy(p)}[order]
    lowest = score.argsort(descending=True, stable=True)[N - masked_count(1, 4, N) :]
    assert watch.seen[0].masked[0].nonzero().flatten().tolist() == sorted(lowest.tolist())


def test_guidance_above_one_leads_away_from_no_class(pre: Pretrained) -> None:
    chain, random = Chain(pre.generator.diffusion, 2), torch.Generator().manual_seed(0)
    condition = torch.randn(2, 5, GENERATOR.dim, generator=random)
    x_t = torch.rand(5, K, generator=random).round()
    projected = chain.diffusion.denoiser.c_embedder(condition)

    def logits(guidance: float, halves: slice) -> Tensor:
        return chain._clean(x_t, projected[halves], guidance, 20.0).logit()  # warm: none is 0 or 1

    with torch.no_grad():
        with_class, without = logits(1, slice(0, 1)), logits(1, slice(1, 2))
        assert (with_class - without).abs().max() > 0.01
        for guidance in (1.25, 2.0, 4.0):
            guided = without + guidance * (with_class - without)
            torch.testing.assert_close(logits(guidance, slice(None)), guided, rtol=1e-4, atol=1e-5)
