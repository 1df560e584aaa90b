"""Prompts as people write them, brought to what a text model reads. Knows nothing of sampling."""

# n prompts, T tokens of the longest, E width of the text encoder's vectors

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.models.transformer import Captions

log = logging.getLogger(__name__)

Prompt: TypeAlias = str | Sequence[str]
_SHOWN = 60  # characters of a prompt in a message


def prompt_list(prompt: Prompt, name: str = "prompt") -> list[str]:
    """Prompts without the white space around them, as a list.

    Raises ValueError for none, for an empty one and for one that is no Unicode text, TypeError for anything but texts.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise ValueError(f"{name} is empty; say what to draw, or leave it out")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}={text!r} is a {type(text).__name__}; give text")
        if not text.strip():
            raise ValueError(f"{name}={text!r} is empty; say what to draw, or leave it out")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[:_SHOWN].encode(errors="replace").decode()
            raise ValueError(f"{name}={shown!r} is not UTF-8 text; write it in UTF-8") from error
    return [text.strip() for text in texts]


def read_prompts(file: PathLike) -> list[str]:
    """The prompts in a text file, one a line; empty lines do not count.

    Raises OSError for a file that cannot be read, ValueError for one that is not UTF-8 or holds none.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); write it again in UTF-8") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{file} holds no prompts; write one a line")
    return found


def read_captions(pre: Pretrained, texts: Sequence[str]) -> Captions:
    """Captions of a text model as it reads them, on its device: features (n, T, E) and lengths (n,).

    A text longer than the model reads is cut, with a warning. Raises ValueError for a model of classes.
    """
    encoder, limit = pre.text_encoder, pre.config.generator.caption_tokens
    found = encoder.encode(texts, limit)
    for text, vectors in zip(texts, found, strict=True):
        if len(vectors) == limit and (count := encoder.count(text)) > limit:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            log.warning("%r has %s tokens; %s reads the first %d", shown, f"{count:,}", pre.config.name, limit)
    features = np.zeros((len(texts), max(map(len, found)), encoder.width), np.float16)
    for row, vectors in zip(features, found, strict=True):
        row[: len(vectors)] = vectors
    lengths = torch.tensor([len(vectors) for vectors in found])
    return Captions(torch.from_numpy(features).to(pre.device), lengths.to(pre.device))
