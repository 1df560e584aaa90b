"""Tables as CSV and as LaTeX. Knows nothing of what their columns mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

__all__ = ["as_csv", "as_latex"]


def as_csv(lines: Iterable[Sequence[object]]) -> str:
    """Lines for spreadsheets; the first contains the headings."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def as_latex(lines: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """Lines as a tabular for the package booktabs; the first contains the headings.

    names: number of text columns at the left; the others are numbers.
    """
    first, *rest = (" & ".join(map(_escaped, line)) + r" \\" for line in lines)
    columns = "l" * names + "r" * (len(lines[0]) - names)
    rows = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", first, r"\midrule", *rest, r"\bottomrule"]
    return "\n".join([*rows, r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    special |= {"±": r"$\pm$", "†": r"$\dagger$", "→": r"$\to$", **{mark: "\\" + mark for mark in "&%$#_{}"}}
    return "".join(special.get(mark, mark) for mark in text)
