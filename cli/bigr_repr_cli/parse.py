"""Option values that several commands take. Knows nothing of models."""

import typer


def parse_layers(values: list[str], names: tuple[str, ...] = ("mid",)) -> list[int | str]:
    """Layers out of options such as "12", "-1", "4,8,12" and the names. Raises BadParameter for anything else."""
    layers: list[int | str] = []
    for part in ",".join(values).split(","):
        text = part.strip()
        if text not in names and not text.removeprefix("-").isdecimal():
            listed = " or ".join(f'"{name}"' for name in names)
            raise typer.BadParameter(f"{text!r} is neither a whole number nor {listed}", param_hint="--layer")
        layers.append(text if text in names else int(text))
    return layers


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas. Raises BadParameter for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers above 0, as 10,20", param_hint=option)
    return tuple(int(part) for part in parts)
