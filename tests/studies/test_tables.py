"""The same grid as Markdown, CSV and LaTeX, byte by byte."""

import csv
import io

import pytest

from dfkd.evaluation.results import Spread
from dfkd.studies.tables import Grid, as_csv, latex, markdown
from dfkd.utils.paired import Difference

GRID = Grid(
    title="50 % & more",
    head=("Method", "color_emoji", "P (PACS, paper)"),
    names=1,
    rows=(
        ("CLIP", Spread(mean=0.8806, std=None), 99.46),
        ("Mix_*|$x^2~#{}\\", Spread(mean=0.5, std=0.0123), None),
    ),
    notes=("Mean ± deviation of a_b.",),
)

MARKDOWN = """\
# 50 % & more

| Method               | color_emoji | P (PACS, paper) |
| -------------------- | ----------: | --------------: |
| CLIP                 |        88.1 |           99.46 |
| Mix\\_\\*\\|$x^2\\~#{}\\\\ |  50.0 ± 1.2 |               - |

- Mean ± deviation of a_b.
"""

CSV = """\
Method,color_emoji,color_emoji std,"P (PACS, paper)"
CLIP,88.0600,,99.46
Mix_*|$x^2~#{}\\,50.0000,1.2300,
"""

LATEX = r"""\begin{table}
\caption{50 \% \& more. Mean $\pm$ deviation of a\_b.}
\begin{tabular}{lrr}
\hline
Method & color\_emoji & P (PACS, paper) \\
\hline
CLIP & 88.1 & 99.46 \\
Mix\_*|\$x\textasciicircum{}2\textasciitilde{}\#\{\}\textbackslash{} & 50.0 $\pm$ 1.2 & - \\
\hline
\end{tabular}
\end{table}
"""


def test_markdown() -> None:
    assert markdown(GRID) == MARKDOWN


def test_csv_has_means_and_deviations_apart() -> None:
    assert as_csv(GRID) == CSV
    assert len({len(line) for line in csv.reader(io.StringIO(as_csv(GRID)))}) == 1


def test_no_name_is_a_formula_to_a_spreadsheet() -> None:
    grid = Grid(
        "t", ("Domain", "=Method", "mean"), 2, (("=x", "=1+1", None), ("+1", "-a", 2.0)), ()
    )
    assert as_csv(grid).splitlines() == ["Domain,'=Method,mean", "'=x,'=1+1,", "'+1,'-a,2.00"]


def test_latex_escapes_all_that_latex_reads() -> None:
    assert latex(GRID) == LATEX


def test_a_difference_has_a_sign_and_an_interval_if_there_is_one() -> None:
    cells = (Difference(0.015, -0.003, 0.033), Difference(-0.02, None, None), None)
    grid = Grid(
        "t",
        ("Method", "vs a"),
        1,
        tuple((name, c) for name, c in zip("bcd", cells, strict=True)),
        (),
    )
    lines = ["| b      | +1.5 (-0.3 to +3.3) |", "| c      |                -2.0 |"]
    assert markdown(grid).splitlines()[4:6] == lines
    rows = list(csv.reader(io.StringIO(as_csv(grid))))
    assert rows[0] == ["Method", "vs a", "vs a low", "vs a high"]
    assert rows[1:] == [
        ["b", "1.5000", "-0.3000", "3.3000"], ["c", "-2.0000", "", ""], ["d", "", "", ""],
    ]  # fmt: skip
    assert r"b & $+1.5$ ($-0.3$ to $+3.3$) \\" in latex(grid)


def test_a_text_of_several_lines_stays_one() -> None:
    grid = Grid("a\n\n# b", ("x\ny",), 1, (("c\n|d",),), ())
    assert markdown(grid) == "# a # b\n\n| x y   |\n| ----- |\n| c \\|d |\n"
    assert "x y \\\\\n" in latex(grid)


def test_a_row_of_another_width_is_no_grid() -> None:
    with pytest.raises(ValueError, match="wide"):
        Grid("t", ("a", "b"), 1, (("c",),), ())
