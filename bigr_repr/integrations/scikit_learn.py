"""Features as a scikit-learn transformer. Knows nothing of networks."""

# n images, D width

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.features.extract import extract_features
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.integrations.opened import AnyModel, opened
from bigr_repr.integrations.samples import samples

__all__ = ["BigrFeatures"]


class BigrFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images to feature vectors, as a step of a Pipeline; layer and pool can be searched by GridSearchCV.

    It has nothing to learn: fit only checks its parameters. X has one image for each row: a sequence, an array or a
    Series of paths, PIL images or arrays, a DataFrame of one such column, or an array (n, H, W, 3).

    model: a name or folder, a model, or an exported network. layer, pool, mirror, batch_size, device: as in
    extract_features. A name is loaded once per process, however often the estimator is cloned.
    """

    def __init__(
        self,
        model: AnyModel = DEFAULT_MODEL,
        layer: int | str = 12,
        pool: str = "avg",
        *,
        mirror: bool = False,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.mirror = mirror
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Check the parameters; images are ignored.  Raises ValueError, or FileNotFoundError for the model."""
        (width,) = self._checked().vector_shape(self.layer)
        self._n_features_out = width
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Feature vectors, float32 (n, D), of the n rows of X.

        Raises ImageError for a picture that cannot be read, ValueError if X is not one picture for each row.
        """
        pictures = samples(X, "X", self._checked().config.image_size)
        found = extract_features(
            pictures, model=opened(self.model), layer=self.layer, pool=self.pool, mirror=self.mirror,
            batch_size=self.batch_size, device=self.device,
        )  # fmt: skip
        return found

    def __sklearn_is_fitted__(self) -> bool:
        """Always true: there is nothing to learn."""
        return True

    def __sklearn_clone__(self) -> Self:
        """A clone with the same model, not a copy of its weights."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        """Declare that images are not rows of numbers and need no labels."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, False
        return tags

    def _checked(self) -> FeatureExtractor:
        if self.pool == "none":
            raise ValueError("pool='none' gives one vector per token; scikit-learn needs one per image: choose another")
        return FeatureExtractor(opened(self.model), (self.layer,), self.pool, mirror=self.mirror)
