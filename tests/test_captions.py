"""The synthetic world: its scenes, its captions, and the judge that reads its pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bigr_repr.captions import captions_of, draw, judge, make_scene, read_caption, read_picture, summarize
from bigr_repr.captions.scenes import COLORS, HELD_OUT, KINDS, SHAPES, Scene, Thing
from bigr_repr.datasets import open_images


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [False, True])
def test_the_judge_reads_real_pictures_without_error(held_out: bool) -> None:
    verdicts = []
    for number in range(250):
        scene = make_scene(3, number, held_out=held_out)
        verdicts += [judge(draw(scene), caption) for caption in captions_of(scene)]
    shares = summarize(verdicts)
    assert {name: value for name, value in shares.items() if name != "pictures" and value != 1.0} == {}


def test_what_a_picture_shows_is_read_back() -> None:
    for number in range(60):
        scene = make_scene(0, number)
        seen = read_picture(draw(scene))
        wanted = sorted((thing.x, thing.y, thing.radius) for thing in scene.things)
        found = sorted((thing.x, thing.y, thing.radius) for thing in seen)
        np.testing.assert_allclose(found, wanted, atol=0.025)


def test_scenes_depend_on_seed_and_number_alone() -> None:
    assert make_scene(1, 7) == make_scene(1, 7)
    assert make_scene(1, 7) != make_scene(2, 7)
    assert {make_scene(1, number).kind for number in range(100)} == set(KINDS)


def test_training_scenes_never_show_what_is_held_out() -> None:
    pairs = {(t.color, t.shape) for number in range(600) for t in make_scene(0, number).things}
    assert pairs == {(color, shape) for color in COLORS for shape in SHAPES} - set(HELD_OUT)
    assert all(make_scene(0, number, held_out=True).held_out for number in range(100))


def _scene(*things: tuple[str, str, float, float]) -> Scene:
    drawn = tuple(Thing(color=c, shape=s, x=x, y=y, radius=0.13) for c, s, x, y in things)
    return Scene(kind="related", things=drawn)


PAIR = _scene(("red", "circle", 0.2, 0.5), ("blue", "square", 0.8, 0.5))


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red circle left of a blue square", set()),
        ("A red circle, to the left of a blue square.", set()),
        ("a blue square to the right of a red circle", set()),
        ("to the left of a blue square is a red circle", set()),
        ("a red circle right of a blue square", {"related"}),
        ("a red circle above a blue square", {"related"}),
        ("a blue circle left of a red square", {"pairs", "related"}),
        ("a red circle left of a green square", {"colors", "pairs", "related"}),
        ("a red circle left of a blue cross", {"shapes", "pairs", "related"}),
        ("a red circle", {"counted"}),
        ("two red circles", {"colors", "shapes", "pairs"}),
        ("a red circle on the left", {"counted"}),
        ("a red circle at the top", {"counted", "placed"}),
        ("a small red circle", {"counted", "sized"}),
    ],
)
def test_the_judge_names_what_is_wrong(caption: str, wrong: set[str]) -> None:
    verdict = judge(draw(PAIR), caption)
    found = {name for name in ("colors", "shapes", "pairs") if getattr(verdict, name) < verdict.things}
    found |= {name for name in ("counted", "placed", "sized", "related") if getattr(verdict, name) is False}
    assert found == wrong
    assert verdict.right == (not wrong)


def test_pictures_of_something_else_show_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert not judge(noise, "a red circle").right
    assert read_picture(Image.new("RGB", (64, 64), (245, 245, 245))) == ()
    gray = Image.new("RGB", (64, 64), (245, 245, 245))
    gray.paste((130, 130, 130), (10, 10, 40, 40))
    assert read_picture(gray)[0].color == "?"


def test_captions_of_other_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names nothing in the synthetic world.*red.*circle"):
        read_caption("a photograph of a cat")


def test_the_set_is_opened_by_name_and_has_captions() -> None:
    train, other = open_images("synthetic-captions:20"), open_images("synthetic-captions:20", train=False)
    held_out = open_images("synthetic-captions:20:held-out")
    assert len(train) == 20
    assert train.captions is not None
    assert train.load(3).size == (64, 64)
    assert judge(train.load(3), train.captions[3][0]).right
    assert len({each.fingerprint() for each in (train, other, held_out)}) == 3
    with pytest.raises(ValueError, match="expected synthetic-captions:COUNT"):
        open_images("synthetic-captions:many")
