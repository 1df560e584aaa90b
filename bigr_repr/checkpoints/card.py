"""The card of a published model, from its own record: architecture, data, terms, quality, limits. Knows no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

from bigr_repr._version import __version__
from bigr_repr.checkpoints.classes import class_names, has_classes
from bigr_repr.config import ModelConfig

_NOT_STATED: Final = "Not recorded. Ask the person who published the model."
_TAGS: Final = ("bigr", "image-feature-extraction", "image-generation", "binary-codes", "image-retrieval")
_CLASSES_SHOWN: Final = 20
_PAPER: Final = "[BiGR](https://arxiv.org/abs/2410.14672)"


def model_card(
    config: ModelConfig,
    *,
    repository: str,
    fingerprint: str,
    parameters: int,
    license: str | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The text of README.md, starting with the hub's metadata. `pictures`: file names and captions."""
    sections = [
        _metadata(config, license),
        f"# {config.name}",
        _what(config, parameters),
        f"## Use\n\n{_use(config, repository)}",
        *(f"![{shown}]({file})\n\n*{shown}*" for file, shown in (pictures or {}).items()),
        f"## Training\n\n{_record(config.training, ('data', 'terms'))}",
        f"## Measured quality\n\n{_record(config.quality, ())}",
        f"## Limits\n\n{_limits(config)}",
        f"## License\n\n{_license(config, license)}",
        f"---\n\nWeights: SHA-256 `{fingerprint}`, checked whenever they load. Written by bigr-repr {__version__}.",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(config: ModelConfig, license: str | None) -> str:
    adapted = config.training.get("adapted")
    base = str(adapted.get("base", "")) if isinstance(adapted, Mapping) else ""
    found: dict[str, Any] = {
        "library_name": "bigr-repr",
        "pipeline_tag": "image-feature-extraction",
        "tags": list(_TAGS),
        "license": license,
        "base_model": base.removeprefix("hf:").partition("@")[0] if base.startswith("hf:") else None,
    }
    known = {name: value for name, value in found.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"


def _what(config: ModelConfig, parameters: int) -> str:
    generator, size = config.generator, config.image_size
    names = class_names(config)
    shown = ", ".join(names[:_CLASSES_SHOWN]) + (", …" if len(names) > _CLASSES_SHOWN else "")
    classes = f" It draws {generator.classes:,} classes{f': {shown}' if names else ''}." if has_classes(config) else ""
    return (
        f"A {_PAPER} generator over binary latent codes: image features, bit codes, search, drawing and editing with "
        f"one model. It reads and draws images of {size} x {size} pixels, as {generator.tokens} tokens of "
        f"{generator.code_bits} bits, {config.code_size // 8:,} bytes per image. {generator.layers} blocks, "
        f"{generator.dim} wide; {parameters / 1e6:,.1f} million parameters.{classes}"
    )


def _use(config: ModelConfig, repository: str) -> str:
    names = class_names(config) if has_classes(config) else ()
    drawn = f'br.generate(model, labels=["{names[0]}"], seed=0)' if names else "br.generate(model, count=4, seed=0)"
    return f"""```bash
pip install bigr-repr
bigr-repr embed photos/ --model hf:{repository} --out embeddings
```

```python
import bigr_repr as br

model = br.load("hf:{repository}")  # "hf:{repository}@COMMIT" pins a version
features = br.extract_features("photos", model=model)
codes = br.encode_codes("photos", model=model)
images = {drawn}
```"""


def _record(record: Mapping[str, Any], first: Sequence[str]) -> str:
    """A record of any form as a list; tables stay tables."""
    if not record:
        return _NOT_STATED
    ordered = {name: record[name] for name in (*(name for name in first if name in record), *record)}
    return "\n".join(_lines(ordered, 0))


def _lines(record: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in record.items():
        label = f"{'  ' * depth}- **{str(name).replace('_', ' ')}**"
        if isinstance(value, Mapping):
            yield label
            yield from _lines(value, depth + 1)
        elif isinstance(value, list | tuple) and any(str(line).startswith("|") for line in value):
            yield f"{label}\n\n" + "\n".join(map(str, value)) + "\n"
        elif isinstance(value, list | tuple):
            yield f"{label}: {', '.join(map(str, value))}"
        elif name == "command":
            yield f"{label}: `{value}`"
        else:
            yield f"{label}: {'not recorded' if value is None else value}"


def _limits(config: ModelConfig) -> str:
    lines = [
        f"- Images are cropped to a square and resized to {config.image_size} pixels; details smaller than a few of "
        "those "
        "pixels are lost.",
        "- Its images resemble its training data, including their gaps and biases. It is not a source of facts, "
        "and not intended for decisions about people.",
        "- Features and bits were measured only as stated above; test them on your own data before you rely on them.",
    ]
    return "\n".join(lines)


def _license(config: ModelConfig, license: str | None) -> str:
    begun = config.training.get("begun_with")
    terms = config.training.get("terms") or (begun.get("terms") if isinstance(begun, Mapping) else None)
    said = f"The weights: {license}." if license else "The weights: not stated by their publisher."
    return f"{said} {f'Terms of the training data: {terms}' if terms else 'Terms of the training data: not recorded.'}"
