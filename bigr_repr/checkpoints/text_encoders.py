"""Text encoders by name: captions in, one vector per token out. Knows nothing of images.

"words" needs no file and no other package: it computes a vector for each word from its letters and its neighbors,
which a generator learns to interpret. Any other name is that of a T5, CLIP or causal model for transformers: a folder,
or one on the hub.
"""

# T tokens of a caption, E width of their vectors

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["WORDS", "TextEncoder", "load_text_encoder"]

WORDS: Final = "words"
_WORD_WIDTH: Final = 256  # numbers for the word itself; as many more for the words around it
_FADE: Final = 0.5  # weight of each further neighbor, relative to the previous one
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_LONGEST_WORD: Final = 64  # letters; longer words are truncated

Vectors = NDArray[np.float16]


class TextEncoder(Protocol):
    """An encoder of captions. `width` is E; `fingerprint` identifies its weights, 64 hexadecimal digits."""

    name: str
    width: int
    fingerprint: str

    def encode(self, texts: Sequence[str], limit: int) -> list[Vectors]:
        """At most the first `limit` tokens of each text: float16 (T, E); (0, E) for a text without any."""
        ...

    def count(self, text: str) -> int:
        """Number of tokens in a text, before truncation."""
        ...


def load_text_encoder(name: str, *, device: str = "cpu") -> TextEncoder:
    """A text encoder by name: "words", or a model for transformers, from the user's cache, a folder or the hub.

    Raises ModuleNotFoundError without transformers, FileNotFoundError for a model that is neither local nor
    available on the hub, ValueError for one that has no token vectors, or an unknown device; each in one line.
    """
    return WordEncoder() if name == WORDS else TransformersEncoder(name, device=device)


class WordEncoder:
    """Vectors of lower-case words and punctuation: made from a word's letters and groups of three, by SHAKE-256.

    Similar for words with similar spelling, otherwise random: the generator has to learn what words mean. Half of a
    vector stands for the word, a quarter each for the words before and after it, nearer ones weighted more. Without
    them, a small generator learned the things in a caption but not which of them "left of" puts on the left.
    """

    name: str = WORDS
    width: int = 2 * _WORD_WIDTH

    def __init__(self) -> None:
        probe = self.encode(["a red circle left of a blue square"], 8)[0]
        self.fingerprint = hashlib.sha256(probe.astype("<f2").tobytes()).hexdigest()

    def encode(self, texts: Sequence[str], limit: int) -> list[Vectors]:
        found = []
        for text in texts:
            rows = [_word_vector(word) for word in self._words(text)[:limit]]
            found.append(_among_neighbors(np.stack(rows)) if rows else np.empty((0, self.width), np.float16))
        return found

    def count(self, text: str) -> int:
        return len(self._words(text))

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word[:_LONGEST_WORD] for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def _among_neighbors(words: NDArray[np.float32]) -> Vectors:
    """Vectors of the words of a text (T, E / 2) -> with the words before and after each, (T, E)."""
    half = _WORD_WIDTH // 2
    before, after = np.zeros((2, len(words), half), np.float32)
    for i in range(1, len(words)):
        before[i] = words[i - 1, :half] + _FADE * before[i - 1]
        after[-1 - i] = words[-i, half:] + _FADE * after[-i]
    return np.concatenate([words, before, after], axis=1).astype(np.float16)


@functools.lru_cache(maxsize=65_536)
def _word_vector(word: str) -> NDArray[np.float32]:
    marked = f"<{word}>"
    parts = [marked[i : i + 3] for i in range(len(marked) - 2)]
    whole = _noise(marked) + sum(_noise(f"#{part}") for part in parts) / len(parts)
    return np.asarray(whole / np.sqrt(np.mean(np.square(whole))), np.float32)


def _noise(text: str) -> NDArray[np.float32]:
    """Numbers (E / 2,) between -1 and 1, derived from a text, the same on every machine."""
    content = hashlib.shake_256(text.encode("utf-8", "replace")).digest(_WORD_WIDTH)
    return np.frombuffer(content, np.uint8).astype(np.float32) / 127.5 - 1


class TransformersEncoder:
    """The last hidden states of a model for transformers; of a model with an encoder and a decoder, the encoder's."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        import torch

        from bigr_repr.checkpoints.weights import fingerprint
        from bigr_repr.system.devices import choose_device

        self.name = name
        self._torch, self._device = torch, choose_device(device)
        self._tokenizer, model = _open(name)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self.width = int(getattr(model.config, "hidden_size", 0) or model.config.d_model)
        words = json.dumps(sorted(self._tokenizer.get_vocab().items())).encode()
        weights = fingerprint({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        self.fingerprint = hashlib.sha256(f"{weights} {hashlib.sha256(words).hexdigest()}".encode()).hexdigest()
        most = [self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
        self._most = min(int(value) for value in (*most, 1 << 20) if value)

    def encode(self, texts: Sequence[str], limit: int) -> list[Vectors]:
        torch = self._torch
        batch = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=min(limit, self._most)
        )
        given = {key: batch[key].to(self._device) for key in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            states = self._model(**given).last_hidden_state.float().cpu()
        if not bool(states.isfinite().all()):
            raise RuntimeError(f"the text encoder {self.name} gives numbers that are not finite; try another precision")
        largest = float(np.finfo(np.float16).max)  # some T5 models exceed it
        rows = zip(states.clamp(-largest, largest).half().numpy(), batch["attention_mask"].bool().numpy(), strict=True)
        return [state[there] for state, there in rows]

    def count(self, text: str) -> int:
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])


def _open(name: str) -> tuple[Any, Any]:
    """Tokenizer and network. Raises as `load_text_encoder`."""
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        remedy = 'pip install "bigr-repr[text]", or choose the text encoder "words", which needs nothing'
        raise ModuleNotFoundError(f"the text encoder {name} needs transformers; {remedy}") from error
    with quiet_transformers():
        try:
            here = _is_here(library, name)
            tokenizer = library.AutoTokenizer.from_pretrained(name, local_files_only=here)
            config = library.AutoConfig.from_pretrained(name, local_files_only=here)
            model = _model_class(library, config).from_pretrained(name, local_files_only=here)
        except OSError as error:
            raise FileNotFoundError(
                f"the text encoder {name} is neither a folder of a model with its tokenizer, nor in this machine's "
                f"cache, nor found on the hub; download it once while connected: hf download {name}"
            ) from error
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the text encoder {name} cannot be opened: {' '.join(str(error).split())[:200]}"
            ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer, model


def _is_here(library: Any, name: str) -> bool:
    """Whether a model is a folder or cached; if not, check the hub. Raises OSError if it does not answer."""
    from huggingface_hub import HfApi

    try:
        library.AutoConfig.from_pretrained(name, local_files_only=True)
    except OSError:
        try:
            HfApi().model_info(name, timeout=10)  # a single attempt; downloads would retry many times
        except Exception as error:  # the hub's client raises many kinds, its transport's too
            raise ConnectionError(str(error)) from error
        return False
    return True


def _model_class(library: Any, config: Any) -> Any:
    """The class of a model's text part, if it returns hidden states."""
    kind = config.model_type.removesuffix("_text_model")
    texts = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"}
    if kind in texts:
        return getattr(library, texts[kind])
    encoders: Any = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_TEXT_ENCODING_MAPPING
    return library.AutoModelForTextEncoding if type(config) in encoders else library.AutoModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the progress bars and reports of transformers."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
