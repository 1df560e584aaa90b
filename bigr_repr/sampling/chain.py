"""The transcoder's chain: from the transformer's output to P(bit = 1) of each token. Knows nothing of orders or images.

Source: BiGR (arXiv 2410.14672), section 3.2; guidance as in section 3.3.
"""

# G guidance halves (1, or 2: with class, without), R rows (tokens of any images), K bits per token,
# D width of the condition, W width of the denoiser, S steps of the chain, T diffusion steps of training

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from bigr_repr.models.bigr import BiGR
from bigr_repr.models.categorical import CategoricalHead
from bigr_repr.models.transcoder import BernoulliDiffusion
from bigr_repr.sampling.categorical import CategoricalChain
from bigr_repr.sampling.guidance import check_halves, guided
from bigr_repr.sampling.orders import confidence
from bigr_repr.sampling.settings import chain_times

_SURE = 1e-6  # with a prior, probabilities stay this far from 0 and 1
UNIFORM_BLOCK = 16  # steps whose uniforms are drawn at once: few calls, bounded memory


class Chain:
    """A reverse chain of S steps over all rows together. Times and their embeddings are computed once, on construction.

    For inference only: calls keep no gradients.
    """

    def __init__(self, diffusion: BernoulliDiffusion, steps: int) -> None:
        self.diffusion = diffusion
        # A model without diffusion sees no bits and needs one step.
        self.single = diffusion.objective == "bce"
        self.times = chain_times(1 if self.single else steps, diffusion.steps)
        device = diffusion.denoiser.c_embedder.weight.device
        with torch.inference_mode():
            times = torch.tensor(self.times, device=device)
            self._time_rows = diffusion.denoiser.t_embedder(times - 1)[:, None]  # (S, 1, W)

    @torch.inference_mode()
    def __call__(
        self,
        condition: Tensor,
        uniform: Callable[[int], Tensor],
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        prior: Tensor | None = None,
    ) -> Tensor:
        """P(bit = 1) of each row: (R, K), float32.

        condition: (G, R, D), with G = 2 (with class, without class) if guidance is above 1, else G = 1.
        uniform: gives (blocks, R, K) in [0, 1) for a number of blocks; S are requested in total.  prior: (R, K), other
        evidence about the bits, as logits: added to those of P(x_0 = 1) at every step, a product of experts.
        """
        check_halves(condition, guidance)
        projected = self.diffusion.denoiser.c_embedder(condition)  # (G, R, W): the same at every step
        stream = self._stream(uniform)
        noise = next(stream)
        x_t = torch.full_like(noise, 0.5) if self.single else (noise < 0.5).float()
        for time_row, (t, s) in zip(self._time_rows, pairwise(self.times), strict=False):
            p_0 = _weighed(self._clean(x_t, projected + time_row, guidance, temperature), prior)
            x_t = (next(stream) < self.diffusion.step_probability(p_0, x_t, t, s)).float()
        return _weighed(self._clean(x_t, projected + self._time_rows[-1], guidance, temperature), prior)

    def bit_probabilities(self, predicted: Tensor) -> Tensor:
        """P(bit = 1) of each bit, which is what this chain predicts."""
        return predicted

    def confidence(self, order: str, predicted: Tensor) -> Tensor:
        """The score of a ranked order, highest first: (R, K) -> (R,) in [0, 1]. KeyError for any other order."""
        return confidence(order, predicted)

    def bits(self, predicted: Tensor, uniform: Callable[[int], Tensor], *, deterministic: bool) -> Tensor:
        """Bits drawn independently, or their most likely values: (R, K) of 0/1, float32. uniform: gives (R, width)."""
        return ((0.5 if deterministic else uniform(predicted.shape[1])) < predicted).float()

    def _stream(self, uniform: Callable[[int], Tensor]) -> Iterator[Tensor]:
        left = len(self.times)
        while left:
            block = min(left, UNIFORM_BLOCK)
            yield from uniform(block)
            left -= block

    def _clean(self, x_t: Tensor, c: Tensor, guidance: float, temperature: float) -> Tensor:
        """P(x_0 = 1) after guidance: x_t (R, K), c (G, R, W) -> (R, K). Both halves see the same noisy bits."""
        denoiser = self.diffusion.denoiser
        x = denoiser.x_embedder((2 * x_t - 1).to(c.dtype)).expand_as(c)
        # Plain rows, guided or not: torch.compile makes a kernel for every kind of shape and stride.
        x, rows = x.reshape(-1, x.shape[-1]), c.flatten(0, 1)
        for block in denoiser.blocks:
            x = block(x, rows)
        logits = denoiser.final_layer(x, rows).float().unflatten(0, c.shape[:2])
        return self.diffusion.clean_probability(guided(logits, guidance) / temperature, x_t)


def make_chain(model: BiGR, steps: int) -> Chain | CategoricalChain:
    """The predictor of a model's bits: a chain of this many steps, or a categorical head, which takes one."""
    head = model.head
    return CategoricalChain(head) if isinstance(head, CategoricalHead) else Chain(head, steps)


def _weighed(probabilities: Tensor, prior: Tensor | None) -> Tensor:
    """P(bit = 1) with the logits of a prior added to its own."""
    if prior is None:
        return probabilities
    return torch.sigmoid(torch.logit(probabilities, eps=_SURE) + prior)
