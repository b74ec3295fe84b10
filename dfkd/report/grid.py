"""A table of figures, once, and as Markdown, CSV and LaTeX: the same grid gives the same bytes."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.results import Spread

Cell = str | Spread | float | None
"""Text, accuracies of ours (0-1), a number of the paper's (percent, as printed), or nothing."""

NONE = "-"

MARKDOWN = re.compile(r"[\\`*<>|~\[\]]|\b_|_\b")
"""What Markdown would read as markup; an underscore within a word is none."""
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass(frozen=True)
class Grid:
    """Head lines and rows of one width; the first `names` columns are texts."""

    title: str
    head: tuple[str, ...]
    names: int
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    """Sentences below."""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError("every row of a grid is as wide as its head")


def figure(cell: Cell, plus: str = " ± ") -> str:
    """A cell as people read it: percent with one decimal, and what deviates; the paper's with two.

    Args:
        plus: stands before a standard deviation.
    """
    if cell is None:
        return NONE
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.2f}"
    deviates = "" if cell["std"] is None else f"{plus}{100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{deviates}"


def markdown(grid: Grid) -> str:
    """A heading, the table padded for those who read it as it is, and the notes as a list."""
    lines = [[_markdown(name) for name in grid.head]]
    lines += [[_markdown(figure(cell)) for cell in row] for row in grid.rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(grid.head))]
    padded = [
        [
            cell.ljust(width) if number < grid.names else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = [
        "-" * width if number < grid.names else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    text = [f"# {_markdown(grid.title)}", ""]
    text += [f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])]
    if grid.notes:
        text += ["", *(f"- {_markdown(note)}" for note in grid.notes)]
    return "\n".join(text) + "\n"


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", _line(text))


def as_csv(grid: Grid) -> str:
    """Names, then for each figure of ours a column of means and one of deviations, in percent."""
    ours = [
        any(isinstance(row[number], dict) for row in grid.rows) for number in range(len(grid.head))
    ]
    stream = io.StringIO()
    out = csv.writer(stream, lineterminator="\n")
    head: list[str] = []
    for name, both in zip(grid.head, ours, strict=True):
        head += [name, f"{name} std"] if both else [name]
    out.writerow(head)
    for row in grid.rows:
        line: list[str] = []
        for cell, both in zip(row, ours, strict=True):
            line += _numbers(cell) if both else ["" if cell is None else figure(cell)]
        out.writerow(line)
    return stream.getvalue()


def _numbers(cell: Cell) -> list[str]:
    if not isinstance(cell, dict):
        return ["", ""]
    std = "" if cell["std"] is None else f"{100 * cell['std']:.4f}"
    return [f"{100 * cell['mean']:.4f}", std]


def latex(grid: Grid) -> str:
    """A `table` that needs no package; the title is its caption, with the notes."""
    title = grid.title if grid.title.endswith(".") else f"{grid.title}."
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(' '.join([title, *grid.notes]))}}}",
        rf"\begin{{tabular}}{{{'l' * grid.names}{'r' * (len(grid.head) - grid.names)}}}",
        r"\hline",
        _latex_row([_latex(name) for name in grid.head]),
        r"\hline",
        *(_latex_row([_latex_cell(cell) for cell in row]) for row in grid.rows),
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    return _latex(cell) if isinstance(cell, str) else figure(cell, r" $\pm$ ")


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _line(text))


def _line(text: str) -> str:
    return " ".join(text.split())
