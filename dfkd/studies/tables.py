"""A table of figures in one form, and its rendering as Markdown, CSV and LaTeX.

The same grid gives the same bytes.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.evaluation.results import Spread
from dfkd.utils.paired import Difference

Entry = str | Spread | Difference | float | None
"""Text; our accuracies or their difference (0-1); a number as the paper prints it; or nothing."""

NONE = "-"

MARKDOWN = re.compile(r"[\\`*<>|~\[\]]|\b_|_\b")
"""Characters that Markdown would read as markup; an underscore inside a word is not markup."""
SIGNED = re.compile(r"[+-][\d.]+")
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass(frozen=True)
class Grid:
    """Headings and rows of the same width; the first `names` columns contain text."""

    title: str
    head: tuple[str, ...]
    names: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    """Sentences below the table."""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError("every row of a grid is as wide as its head")


def format_entry(cell: Entry, plus: str = " ± ") -> str:
    """A cell as text: our figures in percent with one decimal and the deviation, the paper's with
    two.

    Args:
        plus: text before a standard deviation.
    """
    if cell is None:
        return NONE
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, Difference):
        return _signed(cell)
    deviates = "" if cell["std"] is None else f"{plus}{100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{deviates}"


def _signed(cell: Difference) -> str:
    """The difference in percentage points with its sign and interval: `+1.5 (-0.3 to +3.3)`."""
    if cell.low is None or cell.high is None:
        return f"{100 * cell.mean:+.1f}"
    return f"{100 * cell.mean:+.1f} ({100 * cell.low:+.1f} to {100 * cell.high:+.1f})"


def markdown(grid: Grid) -> str:
    """A heading, the table padded so that the source is readable, and the notes as a list."""
    lines = [[_markdown(name) for name in grid.head]]
    lines += [[_markdown(format_entry(cell)) for cell in row] for row in grid.rows]
    # A rule of a Markdown table needs three dashes or more.
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
    return MARKDOWN.sub(lambda match: f"\\{match[0]}", _line(text))


def as_csv(grid: Grid) -> str:
    """The table as CSV; deviations and intervals of our figures get columns of their own."""
    # A spreadsheet cannot compute with "78.9 ± 2.0", so each number has a column.
    columns = [_columns(grid, number) for number in range(len(grid.head))]
    stream = io.StringIO()
    out = csv.writer(stream, lineterminator="\n")
    out.writerow(
        [
            _no_formula(f"{name} {part}".rstrip())
            for name, parts in zip(grid.head, columns, strict=True)
            for part in parts
        ]
    )
    for row in grid.rows:
        line: list[str] = []
        for cell, parts in zip(row, columns, strict=True):
            # An empty cell still takes all its columns, or the later ones would move left.
            line += _numbers(cell) or [""] * len(parts)
        out.writerow([*map(_no_formula, line[: grid.names]), *line[grid.names :]])
    return stream.getvalue()


def _no_formula(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _columns(grid: Grid, number: int) -> tuple[str, ...]:
    """Suffixes of the CSV columns for one column of the grid; the first is always empty."""
    cells = [row[number] for row in grid.rows]
    if any(isinstance(cell, dict) for cell in cells):
        return "", "std"
    return ("", "low", "high") if any(isinstance(cell, Difference) for cell in cells) else ("",)


def _numbers(cell: Entry) -> list[str]:
    """The numbers of a cell as text, ours in percent with four decimals; none if it is empty."""
    if cell is None:
        return []
    if isinstance(cell, str | float):
        return [format_entry(cell)]
    if isinstance(cell, Difference):
        numbers = [cell.mean, cell.low, cell.high]
    else:
        numbers = [cell["mean"], cell["std"]]
    return ["" if number is None else f"{100 * number:.4f}" for number in numbers]


def latex(grid: Grid) -> str:
    """A LaTeX `table` that needs no package; title and notes form its caption."""
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


def _latex_cell(cell: Entry) -> str:
    """A cell in LaTeX; a minus sign needs math mode."""
    if isinstance(cell, str):
        return _latex(cell)
    shown = format_entry(cell, r" $\pm$ ")
    return SIGNED.sub(r"$\g<0>$", shown) if isinstance(cell, Difference) else shown


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in _line(text))


def _line(text: str) -> str:
    return " ".join(text.split())
