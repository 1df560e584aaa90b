"""Compiles the networks used in sampling. Knows nothing of what is sampled."""

from __future__ import annotations

from typing import Any

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.models.categorical import CategoricalHead


def compile_for_sampling(pre: Pretrained, *, backend: Any = "inductor") -> Pretrained:
    """Compile the generator and the tokenizer of a model with torch.compile, in place, and return it.

    The first images take a minute or more. Blocks are compiled one by one, because sampling does not enter the networks
    through `forward`; blocks of one kind share their kernels. The number of rows varies between iterations, so kernels
    are dynamic and no CUDA graphs are recorded. Results agree with those of the uncompiled networks up to rounding.
    """
    head = pre.generator.head
    network = head if isinstance(head, CategoricalHead) else head.denoiser
    blocks = (*pre.generator.transformer.layers, *network.blocks, network.final_layer)
    for module in (*blocks, pre.tokenizer.encoder, pre.tokenizer.generator):
        module.compile(dynamic=True, backend=backend)
    return pre
