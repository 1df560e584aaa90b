"""Laws of representations: which features a backbone is measured by, and how parts of them are set side by side."""

from __future__ import annotations

import numpy as np
import pytest

from bigr_repr.evaluate.representations.base import Reading, View
from bigr_repr.evaluate.representations.open import open_representation


@pytest.mark.parametrize("ending", ["", ".mirror"])
def test_a_transformer_is_measured_by_its_last_class_tokens_with_and_without_the_mean(ending: str) -> None:
    """DINO's protocol: the class token of the last block or of the last four, alone or beside the mean of the last."""
    backbone = open_representation("timm:test_vit?random", device="cpu")
    views = backbone.official_views(Reading(mirror=bool(ending)))
    mean = f"layer-5{ending}"
    one, four = [f"layer-5.cls{ending}"], [f"layer-{block}.cls{ending}" for block in (2, 3, 4, 5)]
    assert [list(view.items) for view in views] == [one, [*one, mean], four, [*four, mean]]
    assert [view.item for view in views] == ["+".join(view.items) for view in views]
    assert backbone.official_views(Reading(pool="max")) != views


def test_parts_are_set_side_by_side_in_their_order() -> None:
    arrays = {"a": np.zeros((2, 3)), "b": np.ones((2, 1))}
    assert np.array_equal(View(item="b+a", parts=("b", "a")).read(arrays), [[1, 0, 0, 0]] * 2)
    assert View(item="a").read(arrays) is arrays["a"]
