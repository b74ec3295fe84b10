"""Few-shot accuracies as a text table, as Markdown, and as the curves of Fig. 5.

The picture shows the mean over domains and then each domain. Its background is white because a file
does not see the page's CSS. The colours are Okabe and Ito's palette for the colour-blind; shape and
dash repeat the distinction.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dfkd.evaluation.few_shot_results import CURVES, Curve, FewShotResults, gains
from dfkd.evaluation.results import Spread
from dfkd.report.svg import RenderedChart, axis_style, band, data_chart, files
from dfkd.report.tables import HEADS, WIDTH, align

CELL = 10
"""Width of a column in characters: `78.9 ±12.3`; a gain may have one more."""
LABELS = ("images a class", "gain", "trained on", "tested on")
"""Labels of the rows that are not curves."""

Bands = Mapping[tuple[Curve, int], Spread]
"""Mean and deviation by curve and number of shots."""
Grid = list[list[str]]
"""Rows of cells, the label first: shots, each curve, gains, and two rows of image counts."""
STYLES: dict[Curve, tuple[str, str, list[int]]] = {
    "untouched": ("#56B4E9", "diamond", [1, 2]),
    "student": ("#0072B2", "circle", [1, 0]),
    "library": ("#E69F00", "square", [6, 3]),
    "scratch": ("#7A7A7A", "triangle-up", [2, 2]),
}
"""Colour, shape and dash of each curve; blue and orange as in the paper."""
LARGE = 504, 260
"""Width and height in pixels of the mean's plot without its axes."""
SMALL, COLUMNS, GAP = 132, 3, 37
"""Pixels of a domain's plot, plots in a row, and pixels between them."""
AXIS = "training images of each class (0: before any training)"
INK, LINE = "#333333", "#DDDDDD"
"""Colours of texts and of lines."""


def table(results: FewShotResults) -> str:
    """Mean accuracy over domains in percent, with the standard deviation over seeds.

    There is one column for each number of shots. The last rows show the gain of training over the
    untrained student, and how many images one seed's trainings used and were tested on. The text
    has at most 80 columns; further columns continue below.
    """
    bands, names = _bands(results), results.data.domains
    size = (WIDTH - max(map(len, LABELS))) // (CELL + 1)
    ticks = _ticks(results)
    blocks = [
        _text_table(_grid(results, bands, ticks[first : first + size], names))
        for first in range(0, len(ticks), size)
    ]
    title = f"few-shot {HEADS[results.average]}, {_averaged_over(names)}"
    return "\n\n".join([f"{title}\n{blocks[0]}", *blocks[1:]])


def markdown(results: FewShotResults) -> str:
    """The same table as Markdown, then one for each domain, and notes."""
    ticks, names = _ticks(results), results.data.domains
    parts = [
        f"# Few-shot {HEADS[results.average]}, of {_escape(results.architecture)}",
        "Mean and standard deviation over draws of the labelled images; 0 images is before any "
        "training. Figures of one column share their test images, those of two columns do not. "
        "The gain is what training adds to the student, with the standard deviation of that "
        "difference.",
        "\n".join(f"- {c}: {_escape(results.curves[c])}" for c in CURVES if c in results.curves),
        f"## {_averaged_over(names).capitalize()}",
        _markdown_table(_grid(results, _bands(results), ticks, names)),
    ]
    for name in names if len(names) > 1 else ():
        grid = _grid(results, _bands(results, name), ticks, [name])
        parts += [f"## {_escape(name)}", _markdown_table(grid)]
    remarks = [*results.data.notes, *(f"unreadable: {line}" for line in results.data.unreadable)]
    if remarks:
        parts += ["## Notes", "\n".join(f"- {_escape(remark)}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def _ticks(results: FewShotResults) -> list[int]:
    """The numbers of shots, rising."""
    return sorted({point.shots for point in results.summary})


def _bands(results: FewShotResults, domain: str | None = None) -> Bands:
    """The accuracies on a domain, or the means over domains for None."""
    return {
        (point.curve, point.shots): (
            Spread(mean=point.mean, std=point.std) if domain is None else point.domains[domain]
        )
        for point in results.summary
    }


def _averaged_over(names: Sequence[str]) -> str:
    """What the means are over."""
    return "one domain" if len(names) == 1 else f"mean of {len(names)} domains"


def _grid(
    results: FewShotResults, bands: Bands, ticks: Sequence[int], names: Sequence[str]
) -> Grid:
    """The cells of a table, with one column for each of `ticks`.

    Args:
        bands: figures of the curves.
        ticks: numbers of shots.
        names: domains that the figures are over.
    """
    rows = [row for row in results.rows if row.domain in names]
    # Every curve has the largest number of shots, but only one has 0.
    curves = [curve for curve, shots in bands if shots == max(ticks)]
    grid = [[curve, *(_figure(bands.get((curve, shots))) for shots in ticks)] for curve in curves]
    if added := gains(rows, results.average):
        grid.append([LABELS[1], *(_figure(added.get(shots), sign="+") for shots in ticks)])
    # All seeds use the same number of images, so those of one seed are counted.
    for label, trained in ((LABELS[2], True), (LABELS[3], False)):
        images = {
            (row.shots, row.domain): sum(row.trained if trained else row.tested)
            for row in rows
            if row.seed == rows[0].seed
        }
        counts = (sum(images[shots, name] for name in names) for shots in ticks)
        grid.append([label, *map(str, counts)])
    return [[LABELS[0], *map(str, ticks)], *grid]


def _figure(figure: Spread | None, sign: str = "") -> str:
    """Mean and deviation in percent; a dash for None.

    Args:
        sign: "+" writes the sign of a positive mean too.
    """
    if figure is None:
        return "-"
    deviation = "" if figure["std"] is None else f" ±{100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:{sign}.1f}{deviation}"


def _text_table(grid: Grid) -> str:
    """The grid as lines of text, with a rule below the heading."""
    lines = align(grid)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _markdown_table(grid: Grid) -> str:
    """The grid as Markdown, with figures aligned right."""
    rule = "|---" + "|---:" * (len(grid[0]) - 1) + "|"
    head, *lines = (f"| {' | '.join(line)} |" for line in grid)
    return "\n".join([head, rule, *lines])


def _escape(text: str) -> str:
    """`text` on one line with the markup of Markdown and HTML escaped."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", shown)


def picture(results: FewShotResults) -> RenderedChart:
    """The large plot of the mean above small ones of the domains, if there are several."""
    domains, seeds = results.data.domains, len(results.summary[0].seeds)
    kind = HEADS[results.average].removesuffix(", %")
    title_lines = [
        f"{results.architecture}: {kind} on the rest of a domain, %",
        _averaged_over(domains)
        + (f"; bands are one standard deviation over {seeds} draws" if seeds > 1 else ""),
    ]
    plots: list[Any] = [_panel(results, _bands(results), title_lines, LARGE)]
    for first in range(0, len(domains), COLUMNS) if len(domains) > 1 else ():
        row = [
            _panel(results, _bands(results, name), [name], (SMALL, SMALL))
            for name in domains[first : first + COLUMNS]
        ]
        plots.append(alt.hconcat(*row, spacing=GAP))
    chart: alt.VConcatChart = (
        alt.vconcat(*plots, spacing=18)
        .configure(background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(**axis_style(INK, LINE))
        .configure_legend(labelColor=INK, labelFontSize=12, symbolSize=90, symbolStrokeWidth=2)
    )
    return files(chart)


def _panel(
    results: FewShotResults,
    bands: Bands,
    title_lines: list[str],
    size: tuple[int, int],
) -> alt.LayerChart | alt.FacetChart:
    """One plot; only the large one has a legend and a title on its axis."""
    large = size[0] > SMALL
    ticks = list(map(str, _ticks(results)))
    # An ordinal axis, because shots double from tick to tick and 0 has no logarithm.
    shots = alt.X(
        "shots:O", sort=ticks, scale=alt.Scale(type="point", padding=0.3),
        axis=alt.Axis(title=AXIS if large else None, labelAngle=0, grid=False),
    )  # fmt: skip
    base = data_chart(_chart_rows(bands)).encode(x=shots)
    colour, shape, dash = _styles(results, large)
    scale = alt.Scale(domain=[0, 100])
    value = alt.Y("mean:Q", scale=scale, axis=alt.Axis(title=None, tickCount=5, ticks=False))
    layers = [
        base.mark_area(opacity=0.22).encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour
        ),
        base.mark_line(strokeWidth=1.8).encode(y=value, color=colour, strokeDash=dash),
        base.mark_point(filled=True, opacity=1, size=60 if large else 24).encode(
            y=value, color=colour, shape=shape
        ),
    ]
    title = alt.TitleParams(
        title_lines[0], anchor="start", fontSize=13 if large else 11, offset=8, color=INK,
        fontWeight="bold" if large else "normal", subtitleColor=INK,
        subtitle=title_lines[1:] or alt.Undefined,
    )  # fmt: skip
    return alt.layer(*layers).properties(width=size[0], height=size[1], title=title)


def _chart_rows(bands: Bands) -> list[dict[str, Any]]:
    """A row for each point: mean and band in percent, within 0 to 100."""
    return [
        {
            "curve": curve,
            "shots": str(shots),
            "mean": 100 * figure["mean"],
            "low": low,
            "high": high,
        }
        for (curve, shots), figure in bands.items()
        for low, high in [band(figure["mean"], figure["std"])]
    ]


def _styles(results: FewShotResults, large: bool) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, shape and dash by curve; the common legend describes each curve."""
    names = [curve for curve in STYLES if curve in results.curves]
    # A legend shows the data's own values; only an expression puts other texts in their place.
    words = {curve: f"{curve}: {results.curves[curve]}" for curve in names}
    label = " : ".join(f"datum.value == {json.dumps(s)} ? {json.dumps(words[s])}" for s in names)
    shown = alt.Legend(
        title=None, orient="top", direction="vertical", symbolOpacity=1, labelLimit=LARGE[0],
        labelExpr=f"{label} : ''",
    )  # fmt: skip
    legend = shown if large else None
    colours, shapes, dashes = zip(*(STYLES[curve] for curve in names), strict=True)
    return (
        alt.Color("curve:N", scale=alt.Scale(domain=names, range=list(colours)), legend=legend),
        alt.Shape("curve:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=legend),
        alt.StrokeDash("curve:N", scale=alt.Scale(domain=names, range=list(dashes)), legend=None),
    )
