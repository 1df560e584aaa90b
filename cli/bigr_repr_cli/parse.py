"""Option values that several commands take. Knows nothing of models."""

import typer


def parse_layers(values: list[str]) -> list[int | str]:
    """Layers out of options such as "12", "-1", "mid" and "4,8,12". Raises BadParameter for anything else."""
    layers: list[int | str] = []
    for part in ",".join(values).split(","):
        text = part.strip()
        if text != "mid" and not text.removeprefix("-").isdecimal():
            raise typer.BadParameter(f'{text!r} is neither a whole number nor "mid"', param_hint="--layer")
        layers.append("mid" if text == "mid" else int(text))
    return layers
