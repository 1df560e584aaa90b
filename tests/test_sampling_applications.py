"""Laws of generate, inpaint, edit, outpaint, interpolate and enrich, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling_model import Watch, all_masked, some_images, tiny_model
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.pictures import to_batch
from bigr_repr.models.bigr import masked_count
from bigr_repr.sampling import SamplingSettings, edit, enrich, generate, inpaint, interpolate, outpaint, walk
from bigr_repr.sampling.applications import block_rounds
from bigr_repr.sampling.canvas import decode, encode, token_mask
from bigr_repr.sampling.compiled import compile_for_sampling
from bigr_repr.sampling.job import Job
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.settings import ORDERS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


def test_generate_gives_images_whatever_the_batch(pre: Pretrained) -> None:
    labels = [3, 0, 4, 1, 2]
    all_at_once = generate(pre, labels, seed=7, steps=4)
    assert all_at_once.shape == (5, 3, 16, 16)
    assert all_at_once.dtype == torch.float32
    assert 0 <= all_at_once.min() <= all_at_once.max() <= 1
    assert torch.equal(generate(pre, labels[:2], seed=7, steps=4), all_at_once[:2])
    assert torch.equal(generate(pre, labels[3:], seed=7, first=3, steps=4), all_at_once[3:])
    torch.testing.assert_close(generate(pre, labels, seed=7, steps=4, batch_size=3), all_at_once, rtol=0, atol=1e-4)
    assert not torch.allclose(generate(pre, labels, seed=8, steps=4), all_at_once)


def test_generate_takes_labels_in_turn(pre: Pretrained) -> None:
    assert torch.equal(generate(pre, [3, 1], count=3, steps=2), generate(pre, [3, 1, 3], steps=2))
    assert generate(pre, 3, steps=2).shape[0] == 1
    assert generate(pre, count=2, steps=2).shape[0] == 2
    with pytest.raises(ValueError, match="count=1 is fewer than the 2"):
        generate(pre, [3, 1], count=1, steps=2)


def test_settings_and_keywords_are_the_same_thing(pre: Pretrained) -> None:
    settings = SamplingSettings(steps=3, order="raster")
    a = generate(pre, [1], settings=settings, steps=2)
    assert torch.equal(a, generate(pre, [1], order="raster", steps=2))


def test_unknown_options_fail(pre: Pretrained) -> None:
    with pytest.raises(TypeError, match=r"unknown options \['stpes'\]; known are .*'steps'"):
        generate(pre, [1], stpes=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("labels", [[0, 5], -1, [1.5], {"cat": 1}, [], [[0, 1]], [True]])
def test_labels_outside_the_model_are_refused(pre: Pretrained, labels: Any) -> None:
    with pytest.raises(ValueError, match="labels="):
        generate(pre, labels, steps=2)


def test_classes_may_be_named(pre: Pretrained) -> None:
    names = ("tench", "goldfish", "white shark", "ray", "cock")
    named = Pretrained(dataclasses.replace(pre.config, class_names=names), pre.tokenizer, pre.generator)
    assert torch.equal(generate(named, ["ray", "Goldfish"], steps=2), generate(pre, [3, 1], steps=2))
    assert torch.equal(generate(named, "ray", steps=2), generate(pre, 3, steps=2))
    with pytest.raises(ValueError, match="nearest: 'goldfish'"):
        generate(named, ["goldfihs"], steps=2)
    with pytest.raises(ValueError, match="test has no names"):
        generate(pre, "cat", steps=2)


def test_a_name_in_place_of_a_model_says_how_to_load_it(pre: Pretrained) -> None:
    for call in (lambda: generate("bigr-tiny", [1]), lambda: edit("bigr-tiny", some_images(), torch.ones(4, 4), 1)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"model = bigr_repr\.load\('bigr-tiny'\)"):
            call()


def test_classes_of_a_model_trained_without_any_are_refused(pre: Pretrained) -> None:
    config = dataclasses.replace(pre.config, training={"settings": {"conditional": False}})
    blind = Pretrained(config, pre.tokenizer, pre.generator)
    assert torch.equal(generate(blind, steps=2), generate(pre, steps=2))
    for draw in (lambda: generate(blind, [1], guidance=2.0, steps=2), lambda: interpolate(blind, [0, 1], steps=2)):
        with pytest.raises(ValueError, match="test was trained without classes"):
            draw()


def test_guidance_without_labels_is_refused(pre: Pretrained) -> None:
    with pytest.raises(ValueError, match="no class to guide toward"):
        generate(pre, guidance=2.0, steps=2)
    with pytest.raises(ValueError, match="no class to guide toward"):
        enrich(pre, some_images(), guidance=10.0, steps=2)


def test_inpaint_keeps_the_known_bits(pre: Pretrained) -> None:
    image, watch = some_images(2), Watch()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:7, 9] = True  # touches tokens (0, 2) and (1, 2)
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[0, 2] = wanted[1, 2] = True
    got = inpaint(pre, image, mask, steps=2, callback=watch)
    with torch.no_grad():
        codes = encode(pre, image)
    for at in watch.seen:
        known = ~wanted.flatten()
        assert torch.equal(at.codes[:, known], codes[at.images[0] : at.images[0] + 1, known])
    last = torch.cat([at.codes for at in watch.seen if at.iteration == at.iterations])
    with torch.no_grad():
        torch.testing.assert_close(got, decode(pre, last), rtol=0, atol=1e-4)


def test_masks_of_pixels_and_tokens_agree(pre: Pretrained) -> None:
    tokens = torch.zeros(4, 4)
    tokens[1, 2] = 1
    pixels = tokens.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(token_mask(pre, tokens), token_mask(pre, pixels))
    assert torch.equal(token_mask(pre, (255 * pixels).to(torch.uint8)), token_mask(pre, pixels.numpy()))


@pytest.mark.parametrize("mask", [torch.ones(5, 5), torch.ones(16), torch.ones(16, 15), torch.zeros(16, 16)])
def test_masks_of_another_size_or_empty_are_refused(pre: Pretrained, mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask"):
        inpaint(pre, some_images(), mask, steps=2)


def test_edit_is_inpaint_with_a_class(pre: Pretrained) -> None:
    mask = torch.ones(4, 4)
    a, b = edit(pre, some_images(), mask, 3, steps=4), edit(pre, some_images(), mask, 1, steps=4)
    assert torch.equal(a, inpaint(pre, some_images(), mask, 3, steps=4))
    assert not torch.equal(a, b)
    with pytest.raises(ValueError, match="labels=None"):
        edit(pre, some_images(), mask, None, steps=4)  # type: ignore[arg-type]


def test_painting_gives_versions_and_spreads_single_inputs(pre: Pretrained) -> None:
    mask = torch.ones(4, 4)
    several = inpaint(pre, some_images(), mask, [1, 2], count=4, steps=2)
    assert several.shape[0] == 4
    assert torch.equal(several[1:2], inpaint(pre, some_images(), mask, 2, first=1, steps=2))
    with pytest.raises(ValueError, match="3 images, 2 masks and 1 labels do not match"):
        inpaint(pre, some_images(3), torch.ones(2, 4, 4), steps=2)


def test_outpaint_keeps_the_tokens_inside(pre: Pretrained) -> None:
    watch = Watch()
    outpaint(pre, some_images(side=9), at=(4, 3), steps=2, callback=watch)
    first = watch.seen[-1].codes
    canvas = torch.nn.functional.pad(some_images(side=9), (4, 3, 3, 4), mode="replicate")
    with torch.no_grad():
        known = encode(pre, canvas)
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 1:3] = True  # rows 3..12 hold tokens 4..12, columns 4..13 too
    assert torch.equal(first[:, inside.flatten()], known[:, inside.flatten()])
    assert watch.seen[0].masked.sum() == 6  # half of 12: linear
    for at, says in [((8, 0), "extends outside the canvas"), (None, "")]:
        side = 9 if says else 16
        with pytest.raises(ValueError, match=says or "fills the canvas"):
            outpaint(pre, some_images(side=side), at=at, steps=2)


def test_interpolation_with_one_hot_weights_is_plain_generation(pre: Pretrained) -> None:
    got = interpolate(pre, [3, 1], weights=torch.eye(2), steps=4, seed=5)
    assert torch.equal(got[:1], generate(pre, [3], steps=4, seed=5))
    assert torch.equal(got[1:], generate(pre, [1], steps=4, seed=5))


def test_frames_between_classes_are_drawn_in_one_order_for_all(pre: Pretrained) -> None:
    ranked = Job(pre, SamplingSettings(), {"order": "entropy", "steps": 4})
    assert (walk._in_step(ranked).settings.order, walk._in_step(ranked).settings.steps) == ("halton", 4)
    fixed = Job(pre, SamplingSettings(), {"order": "raster"})
    assert walk._in_step(fixed).settings.order == "raster"


def test_interpolation_goes_evenly_by_way_of_all_labels(pre: Pretrained) -> None:
    got = interpolate(pre, [3, 1, 0], frames=5, steps=2)
    mix = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    assert torch.equal(got, interpolate(pre, [3, 1, 0], weights=mix, steps=2))
    for wrong in ({"frames": 1}, {"weights": [[1.0]]}, {"weights": [[math.nan, 1.0]]}):
        with pytest.raises(ValueError, match=r"frames=1|weights has shape"):
            interpolate(pre, [3, 1], steps=2, **wrong)
    with pytest.raises(ValueError, match="single class"):
        interpolate(pre, [3], steps=2)


def test_enrich_redraws_one_place_of_every_block_a_round(pre: Pretrained) -> None:
    watch = Watch()
    enrich(pre, some_images(), steps=3, callback=watch, guidance=3.0, labels=2)
    assert [at.iteration for at in watch.seen] == list(range(1, 13))
    assert {at.iterations for at in watch.seen} == {12}
    rounds = block_rounds(all_masked(1), SeededDraws(0, [0]))
    assert torch.equal(sum(r.int() for r in rounds), all_masked(1).int())  # type: ignore[arg-type]
    ends = [watch.seen[i].codes for i in (2, 5, 8, 11)]
    for before, after, mask in zip(ends, ends[1:], rounds[1:], strict=False):
        assert torch.equal(before[~mask], after[~mask])
        assert not torch.equal(before[mask], after[mask])


@pytest.mark.parametrize("grid", [1, 3, 5])
def test_odd_grids_work(grid: int) -> None:
    pre = tiny_model(grid=grid)
    side = pre.config.image_size
    masks = block_rounds(all_masked(2, grid * grid), SeededDraws(0, [0, 1]))
    assert torch.equal(torch.stack(masks).sum(0), all_masked(2, grid * grid).int())
    assert enrich(pre, some_images(side=side), steps=1).shape == (1, 3, side, side)
    for order in ORDERS:
        assert generate(pre, [1], steps=1, order=order).shape == (1, 3, side, side)


def test_whole_numbers_may_be_numpys() -> None:
    pre = tiny_model()
    seed, count = np.int64(3), np.int64(2)
    options: Any = {"seed": seed, "count": count, "steps": 2, "diffusion_steps": 2}
    assert torch.equal(generate(pre, [1], **options), generate(pre, [1], seed=3, count=2, steps=2, diffusion_steps=2))
    with pytest.raises(ValueError, match="seed=True"):
        generate(pre, [1], seed=True)


def test_a_grid_of_512_pixels_works() -> None:
    """1024 tokens, a mask of odd shape: known tokens stay, and the schedule counts the masked ones."""
    pre, watch = tiny_model(grid=32), Watch()
    side = pre.config.image_size
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[3:17, 5] = mask[31, ::3] = mask[0, 0] = True
    image, total = some_images(side=side), int(mask.sum())
    painted = inpaint(pre, image, mask, steps=3, order="halton", schedule="cosine", callback=watch)
    assert painted.shape == (1, 3, side, side)
    assert [count for (count,) in watch.masked] == [masked_count(i, 3, total) for i in (1, 2, 3)]
    with torch.no_grad():
        known = encode(pre, image)
    assert torch.equal(watch.seen[-1].codes[:, ~mask.flatten()], known[:, ~mask.flatten()])


@pytest.mark.slow
def test_calls_of_all_kinds_share_what_was_compiled() -> None:
    """Guided and not, one token or many: torch.compile gives up silently on a block that meets too many kinds."""
    torch._dynamo.reset()
    compiled = compile_for_sampling(tiny_model(transcoder_blocks=3), backend="eager")
    # Half of what is allowed, since all the models of a process share the limit.
    limit = torch._dynamo.config.recompile_limit // 2
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
        for labels, steps in (([1], 16), (None, 16), ([1, 2], 3), (None, 5), ([1], 16)):
            generate(compiled, labels, steps=steps, diffusion_steps=2)


@pytest.mark.slow
def test_compiled_networks_draw_the_same() -> None:
    """And every part is among what was compiled: a caller that passes by a compiled `forward` leaves it as slow."""
    torch._dynamo.reset()
    pre, compiled, names = tiny_model(), tiny_model(), set[str]()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        names.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compile_for_sampling(compiled, backend=backend)
    assert torch.equal(
        generate(compiled, [1], steps=2, diffusion_steps=1), generate(pre, [1], steps=2, diffusion_steps=1)
    )
    for part in ("attention", "feed_forward", "mlp", "linear", "conv1"):
        assert any(f"_modules_{part}_" in name for name in names), part


def test_images_of_any_kind_are_read_alike() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_batch(torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(tensor, to_batch(pixels))
    assert torch.equal(tensor, to_batch(Image.fromarray(pixels)))
    assert torch.equal(tensor, to_batch(tensor))
    for wrong in (torch.zeros(4, 4), torch.zeros(3, 4, 4, dtype=torch.long), torch.full((3, 4, 4), 1.5)):
        with pytest.raises(ValueError, match="image has"):
            to_batch(wrong)


def test_images_of_another_size_are_refused(pre: Pretrained) -> None:
    with pytest.raises(ValueError, match="image is 12x12 pixels; test needs 16x16"):
        inpaint(pre, some_images(side=12), torch.ones(4, 4), steps=2)
