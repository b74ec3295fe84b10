"""A grid as Markdown, byte by byte."""

from dfkd.evaluation.results import Spread
from dfkd.lab.studies.output import Grid, markdown
from dfkd.lab.studies.results import Difference

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

| Method                | color_emoji | P (PACS, paper) |
| --------------------- | ----------: | --------------: |
| CLIP                  |        88.1 |           99.46 |
| Mix\\_\\*\\|$x^2\\~\\#{}\\\\ |  50.0 ± 1.2 |               - |

- Mean ± deviation of a_b.
"""


def test_markdown() -> None:
    assert markdown(GRID) == MARKDOWN


def test_a_difference_has_a_sign_and_an_interval_if_there_is_one() -> None:
    cells = (Difference(0.015, -0.003, 0.033), Difference(-0.02, None, None), None)
    grid = Grid("t", ("Method", "vs a"), 1, tuple(zip("bcd", cells, strict=True)), ())
    lines = ["| b      | +1.5 (-0.3 to +3.3) |", "| c      |                -2.0 |"]
    assert markdown(grid).splitlines()[4:6] == lines


def test_a_text_of_several_lines_stays_one() -> None:
    grid = Grid("a\n\n# b", ("x\ny",), 1, (("c\n|d",),), ())
    assert markdown(grid) == "# a \\# b\n\n| x y   |\n| ----- |\n| c \\|d |\n"
