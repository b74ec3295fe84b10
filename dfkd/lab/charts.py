"""Charts as files, of studies and of few-shot results: in colours on a white background."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from dfkd.evaluation.results import Spread
from dfkd.report.page import band

COLOURS = (
    "#4b5563", "#0072b2", "#d98e04", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d31",
    "#6b4fa1", "#c0392b", "#7f8c1f", "#1f8a8c",
)  # fmt: skip
"""Colours, safe for most colour-blind readers; more series repeat them in other marker shapes."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
INK, GREY, LINE = "#14181f", "#5b6472", "#e3e6eb"
WIDTH, HEIGHT = 420, 280
"""Pixels of a plot without its axes."""


@dataclass(frozen=True)
class Series:
    """A line, or the bars of one colour."""

    name: str
    values: tuple[tuple[float | str, Spread], ...]
    """Pairs of x and the accuracy there (0-1)."""


@dataclass(frozen=True)
class Scatter:
    """A two-dimensional map of labelled points."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str]
    pale: Sequence[bool]
    """Whether each point is drawn pale."""


@dataclass(frozen=True)
class RenderedChart:
    """A chart as the bytes of an SVG and a PNG file; the same chart gives the same bytes."""

    svg: bytes
    png: bytes
    """Has twice the resolution of the SVG."""


def _rendered(chart: Any) -> RenderedChart:
    """Set the common style of all charts and draw the files."""
    chart = chart.configure(background="white", padding=12).configure_view(stroke=None)
    # Names of rows are long, and cut ones may look alike.
    legend = {"title": None, "labelColor": INK, "labelFontSize": 11, "labelLimit": 0}
    chart = chart.configure_legend(symbolOpacity=1, **legend)
    chart = chart.configure_title(color=INK, fontSize=13, anchor="start")
    chart = chart.configure_axis(
        labelColor=GREY, titleColor=GREY, titleFontWeight="normal", labelFontSize=11,
        titleFontSize=12, gridColor=LINE, domainColor=LINE, tickColor=LINE,
    )  # fmt: skip
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), allowed_base_urls=[])
    return RenderedChart(svg.encode(), vl_convert.svg_to_png(svg, scale=2))


def _rows(series_list: Sequence[Series]) -> list[dict[str, Any]]:
    """One row of data for each point of each series, in percent."""
    return [
        {"series": series.name, "x": x, "y": 100 * spread["mean"], "low": low, "high": high}
        for series in series_list
        for x, spread in series.values
        for low, high in [band(spread["mean"], spread["std"])]
    ]


def _colour(names: Sequence[str]) -> alt.Color:
    """The colour of each series, in the order of the names."""
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    return alt.Color("series:N", sort=None, scale=alt.Scale(domain=list(names), range=colours))


def curve(
    title: str, x: str, y_title: str, series_list: Sequence[Series], first_is_mean: bool
) -> RenderedChart:
    """Accuracy over a number on a logarithmic axis, with vertical bars of ± one standard deviation.

    Args:
        x, y_title: titles of the axes.
        series_list: one line each; the first summarises the others and is drawn thicker.
    """
    rows = _rows(series_list)
    xs = sorted({float(row["x"]) for row in rows})
    # Ticks at the measured values only: the lines between them are no measurements. Without a
    # format a short axis would show a count as 1.0.
    ticks = alt.Axis(values=xs, grid=False, format=",~g")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("x:Q", title=x, scale=_scale(xs), axis=ticks),
        color=_colour([series.name for series in series_list]),
    )
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False))
    first = alt.datum.series == series_list[0].name
    thick = alt.condition(first, alt.value(3.0), alt.value(1.4))
    size = thick if first_is_mean else alt.value(1.4)
    lines = base.mark_line().encode(y=y, size=size)
    rules = base.mark_rule(opacity=0.6).encode(y="low:Q", y2="high:Q")
    points = base.mark_point(filled=True, size=36, opacity=1).encode(y=y)
    chart = alt.layer(rules, lines, points).properties(title=title, width=WIDTH, height=HEIGHT)
    return _rendered(chart)


def _scale(xs: Sequence[float]) -> alt.Scale:
    """A logarithmic axis with a margin; a linear one if it starts at 0, which has no logarithm."""
    if xs[0] <= 0:
        return alt.Scale(nice=False)
    return alt.Scale(type="log", domain=[xs[0] / 1.1, xs[-1] * 1.1], nice=False)


def bars(title: str, y_title: str, series_list: Sequence[Series]) -> RenderedChart:
    """Bars grouped by x, one for each series, with lines of ± one standard deviation."""
    rows, names = _rows(series_list), [series.name for series in series_list]
    x = alt.X("x:N", sort=None, title=None, axis=alt.Axis(labelAngle=0, ticks=False))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=x, xOffset=alt.XOffset("series:N", sort=names)
    )
    scale = alt.Scale(domain=[0, 100])
    bar = base.mark_bar().encode(y=alt.Y("y:Q", title=y_title, scale=scale), color=_colour(names))
    rules = base.mark_rule(color=INK).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    groups = len({row["x"] for row in rows})
    # As wide as the bars need, because narrower ones would hide behind their deviations.
    width = max(WIDTH, groups * (14 * len(names) + 24))
    return _rendered(alt.layer(bar, rules).properties(title=title, width=width, height=HEIGHT))


def maps(title: str, rows: Sequence[Sequence[Scatter]]) -> RenderedChart:
    """A plot for each map, arranged in the given rows, with one common legend."""
    labels = sorted({label for line in rows for scatter in line for label in scatter.labels})
    lines = [alt.hconcat(*(_plot(scatter, labels) for scatter in line)) for line in rows]
    return _rendered(alt.vconcat(*lines).properties(title=title))


def _plot(scatter: Scatter, labels: Sequence[str]) -> alt.Chart:
    """The scatter plot of one map; colour and shape stand for the label."""
    rows = [
        {"x": x, "y": y, "series": label, "pale": pale}
        for (x, y), label, pale in zip(scatter.points, scatter.labels, scatter.pale, strict=True)
    ]
    # The colours repeat after `COLOURS`, and each repetition gets another shape.
    shapes = [SHAPES[number // len(COLOURS) % len(SHAPES)] for number in range(len(labels))]
    hidden = alt.Axis(title=None, labels=False, ticks=False, domain=False, grid=False)
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(filled=True, size=28)
        .encode(
            opacity=alt.condition(alt.datum.pale, alt.value(0.3), alt.value(0.9)),
            x=alt.X("x:Q", axis=hidden, scale=alt.Scale(nice=False)),
            y=alt.Y("y:Q", axis=hidden, scale=alt.Scale(nice=False)),
            color=_colour(labels),
            shape=alt.Shape("series:N", sort=None, scale=alt.Scale(domain=labels, range=shapes)),
        )
        .properties(title=scatter.name, width=WIDTH * 2 // 3, height=HEIGHT)
    )
    return chart
