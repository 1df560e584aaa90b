"""Encodes prompts for a text model. Knows nothing of sampling or features."""

# n prompts, T tokens of the longest, E width of the text encoder's vectors

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.models.transformer import Captions

log = logging.getLogger(__name__)

_SHOWN = 60  # characters of a prompt in a message


def read_captions(pre: Pretrained, texts: Sequence[str]) -> Captions:
    """Encoded captions for a text model, on its device: features (n, T, E) and lengths (n,).

    Texts that are too long for the model are truncated, with a warning. Raises ValueError for a class model.
    """
    encoder, limit = pre.text_encoder, pre.config.generator.caption_tokens
    found = encoder.encode(texts, limit)
    for text, vectors in zip(texts, found, strict=True):
        if (count := encoder.count(text)) > len(vectors):  # the encoder's own limit may be lower
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            log.warning("%r has %s tokens; %s reads the first %d", shown, f"{count:,}", pre.config.name, len(vectors))
    features = np.zeros((len(texts), max(map(len, found)), encoder.width), np.float16)
    for row, vectors in zip(features, found, strict=True):
        row[: len(vectors)] = vectors
    lengths = torch.tensor([len(vectors) for vectors in found])
    return Captions(torch.from_numpy(features).to(pre.device), lengths.to(pre.device))
