"""The charts of a page; each is small enough for a phone.

A chart is a Vega-Lite specification in placeholder colours, which `svg.py` draws. Marks have their
own labels instead of a legend, so that no colour has to be looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dfkd.report.readers import PromptFacts, TrainingCurve
from dfkd.report.svg import COLOURS, SERIES, axis_style, band, data_chart, draw

WIDTH = 250
"""Pixels of a plot without its axes; with them it fits a phone."""
CURVES_HEIGHT, HISTOGRAM_HEIGHT = 170, 120
MAP_WIDTH, MAP_HEIGHT = 290, 230
"""Pixels of the map of prompts, which has no labels beside its axes and so is wider."""
BINS = 40
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
"""Dash patterns of a method's seeds."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Shapes of classes in the map of prompts; each is used with every colour."""
MAX_POINTS = 400
"""Maximum number of points of a line."""
MAX_PROMPT_LENGTH = 140
"""Maximum number of characters of a prompt in a tooltip."""
LABEL_DISTANCE = 12
"""Minimum vertical distance between two labels, in pixels."""


@dataclass(frozen=True)
class ModelBar:
    """One model's accuracy, 0-1."""

    name: str
    slot: int
    """Number of its colour."""
    mean: float
    std: float | None


def series(slot: int) -> str:
    """The placeholder colour of a series."""
    return COLOURS[f"s{slot % SERIES}"]


def _rendered(chart: alt.LayerChart | alt.FacetChart, label: str) -> Markup:
    """The chart as SVG with the style that all charts share; `label` is for screen readers."""
    axis = axis_style(
        COLOURS["muted"], COLOURS["line"], labelFontSize=11, titleFontSize=11, tickSize=4
    )
    # The page's own font may be wider than the one that measured the labels.
    room = {"left": 8, "right": 20, "top": 4, "bottom": 4}
    chart = chart.configure(background="transparent", padding=room).configure_view(stroke=None)
    return draw(chart.configure_axis(**axis), label)


def bars(title: str, models: Sequence[ModelBar]) -> Markup:
    """Accuracy of each model as a labelled bar, with a line of ± one standard deviation."""
    rows = [
        {
            "name": model.name,
            "colour": series(model.slot),
            "value": 100 * model.mean,
            "low": low,
            "high": high,
            "text": f"{100 * model.mean:.1f}",
            "about": f"{model.name} on {title}: {100 * model.mean:.1f} %"
            + ("" if model.std is None else f" ± {100 * model.std:.1f}"),
        }
        for model in models
        for low, high in [band(model.mean, model.std)]
    ]
    scale = alt.Scale(domain=[0, 100])
    axis = alt.Axis(values=[0, 25, 50, 75, 100], title=None, domain=False, ticks=False)
    # The same `minExtent` everywhere, so that bars of different domains begin below each other.
    names = alt.Axis(
        title=None, domain=False, ticks=False, labelPadding=6, labelColor=COLOURS["ink"],
        labelLimit=110, minExtent=74, labelFontSize=12,
    )  # fmt: skip
    base = data_chart(rows).encode(y=alt.Y("name:N", sort=None, axis=names))
    bar = base.mark_bar(height=13).encode(
        x=alt.X("value:Q", scale=scale, axis=axis),
        color=alt.Color("colour:N", scale=None),
        description="about:N",
    )
    layers = [bar]
    if any(model.std is not None for model in models):
        spread = base.mark_rule(strokeWidth=1.5, color=COLOURS["ink"], aria=False)
        layers.append(spread.encode(x=alt.X("low:Q", scale=scale), x2="high:Q"))
    text = base.mark_text(
        align="left", dx=5, fontSize=12, fontWeight=600, color=COLOURS["ink"], aria=False
    )
    # At the upper end of the deviation, so that the line does not run through the figure.
    layers.append(text.encode(x=alt.X("high:Q", scale=scale), text="text:N"))
    chart = alt.layer(*layers).properties(width=WIDTH - 40, height=22 * len(rows))
    return _rendered(chart, f"Accuracy on {title}, in percent")


def _lines(rows: Sequence[dict[str, Any]], high: float) -> alt.Chart:
    """The lines of `curves`, on an axis from 0 to `high`."""
    chart: alt.Chart = (
        data_chart(rows)
        .mark_line(strokeWidth=1.8, clip=False)
        .encode(
            x=alt.X("x:Q", axis=alt.Axis(title="step", tickCount=4, grid=False)),
            y=alt.Y(
                "y:Q", scale=alt.Scale(domain=[0, high]),
                axis=alt.Axis(title=None, tickCount=5, domain=False, ticks=False),
            ),
            color=alt.Color("colour:N", scale=None),
            strokeDash=alt.StrokeDash(
                "dash:N", legend=None,
                scale=alt.Scale(domain=list(range(len(DASHES))), range=list(DASHES)),
            ),
            detail="line:N",
            description="line:N",
        )
    )  # fmt: skip
    return chart


def curves(kind: str, curve_slots: Sequence[tuple[TrainingCurve, int]]) -> Markup:
    """Loss or agreement of each student over training steps; each line is labelled at its end.

    Args:
        kind: `loss` or `agreement`.
        curve_slots: curves with their colour slots.
    """
    values = [curve.loss if kind == "loss" else curve.agreement for curve, _ in curve_slots]
    highest = max((max(v) for v in values if v), default=1.0)
    top = 1.0 if kind == "agreement" else highest * 1.05 or 1.0
    rows, ends = [], []
    dashes = _dashes([curve for curve, _ in curve_slots])
    for (curve, slot), value, dash in zip(curve_slots, values, dashes, strict=True):
        # More points than pixels would only make the page larger.
        step = -(-len(value) // MAX_POINTS) or 1
        for x, y in list(zip(curve.steps, value, strict=True))[::step]:
            rows.append({"x": x, "y": y, "line": curve.name, "colour": series(slot), "dash": dash})
        if value:
            ends.append((curve.name, slot, float(curve.steps[-1]), value[-1]))
    labels = _spread_labels(ends, top, CURVES_HEIGHT)
    text = (
        data_chart(labels)
        .mark_text(align="left", dx=5, fontSize=11, aria=False)
        .encode(x="x:Q", y="y:Q", text="text:N", color=alt.Color("colour:N", scale=None))
    )
    chart = alt.layer(_lines(rows, top), text).properties(width=WIDTH, height=CURVES_HEIGHT)
    return _rendered(chart, f"{kind.capitalize()} of each student over training steps")


def _dashes(training_curves: Sequence[TrainingCurve]) -> list[int]:
    """Index of each curve's dash pattern, by the rank of its seed within its method."""
    seeds: dict[str, list[int]] = {}
    for curve in training_curves:
        seeds.setdefault(curve.method, []).append(curve.seed)
    return [
        sorted(seeds[curve.method]).index(curve.seed) % len(DASHES) for curve in training_curves
    ]


End = tuple[str, int, float, float]
"""Text, colour slot, x and y of a point that is labelled, in units of the axes."""


def _spread_labels(
    ends: Sequence[End], top: float, height: int, rise: int = 0
) -> list[dict[str, Any]]:
    """Rows of labels at their points, moved down where two would overlap.

    Args:
        ends: the labelled points.
        top: value at the upper end of the y axis, which starts at 0.
        height: height of the plot in pixels.
        rise: pixels by which a label is above its point.
    """
    # Overlap is a matter of pixels, which count down from the top; the chart wants values.
    pixels = spread_out([height * (1 - y / top) - rise for *_, y in ends], LABEL_DISTANCE)
    return [
        {"x": x, "y": top * (1 - pixel / height), "text": name, "colour": series(slot)}
        for (name, slot, x, _), pixel in zip(ends, pixels, strict=True)
    ]


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, some of them moved down as little as needed to keep all `gap` apart."""
    moved = list(positions)
    # Work from the top down, so that each position is moved at most once.
    last = -np.inf
    for i in sorted(range(len(moved)), key=lambda i: moved[i]):
        last = moved[i] = max(moved[i], last + gap)
    return moved


def histogram(
    title: str, groups: Sequence[tuple[str, int, npt.NDArray[Any]]], low: float, high: float
) -> Markup:
    """The share of values in each of 40 bins, with one semi-transparent outline for each group.

    Args:
        title: title of the x axis.
        groups: name, colour slot and values of each group.
        low: start of the x axis.
        high: end of the x axis.
    """
    rows, peaks = _shares(groups, low, high)
    top = max((share for *_, share in peaks), default=1.0) or 1.0
    labels = _spread_labels(peaks, top, HISTOGRAM_HEIGHT, rise=8)
    # A label right of a peak near the right edge would leave the plot.
    middle = (low + high) / 2
    layers = [
        _histogram_bars(title, rows, low, high),
        *_side_labels([label for label in labels if label["x"] <= middle], right=False),
        *_side_labels([label for label in labels if label["x"] > middle], right=True),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=HISTOGRAM_HEIGHT)
    return _rendered(chart, f"Histogram of {title}")


def _shares(
    groups: Sequence[tuple[str, int, npt.NDArray[Any]]], low: float, high: float
) -> tuple[list[dict[str, Any]], list[End]]:
    """Rows of a histogram's bars, and the highest bar of each group."""
    edges = np.linspace(low, high, BINS + 1)
    rows, peaks = [], []
    for name, slot, values in groups:
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        # Shares and not counts, because groups have different sizes.
        shares = counts / max(counts.sum(), 1)
        highest = int(shares.argmax())
        peaks.append((name, slot, float(edges[highest]), float(shares[highest])))
        rows += [
            {
                "x": float(edge), "x2": float(after), "y": float(share),
                "colour": series(slot),
                "about": f"{name}: {100 * share:.1f} % from {edge:.2f} to {after:.2f}",
            }
            for edge, after, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share
        ]  # fmt: skip
    return rows, peaks


def _histogram_bars(
    title: str, rows: Sequence[dict[str, Any]], low: float, high: float
) -> alt.Chart:
    """The bars of all groups, one group in front of the other."""
    # Not stacked below, because groups are compared and each must start at 0.
    axis = alt.Axis(title="share", format="%", tickCount=4, domain=False, ticks=False)
    chart: alt.Chart = (
        data_chart(rows)
        .mark_bar(opacity=0.55, binSpacing=0)
        .encode(
            x=alt.X(
                "x:Q", scale=alt.Scale(domain=[low, high]),
                axis=alt.Axis(title=title, grid=False, tickCount=5),
            ),
            x2="x2:Q",
            y=alt.Y("y:Q", axis=axis, stack=False),
            y2=alt.Y2Datum(0),
            color=alt.Color("colour:N", scale=None),
            description="about:N",
        )
    )  # fmt: skip
    return chart


def _side_labels(labels: Sequence[dict[str, Any]], right: bool) -> list[alt.Chart]:
    """Texts that end (`right`) or begin at their positions, coloured like their series."""
    if not labels:
        return []
    align, dx = ("right", -6) if right else ("left", 8)
    return _outlined(labels, 4, align=align, dx=dx)


def _outlined(labels: Sequence[dict[str, Any]], width: int, **style: Any) -> list[alt.Chart]:
    """Texts above a copy with an outline of `width` pixels, readable in front of other marks."""
    text, paper = data_chart(labels).encode(x="x:Q", y="y:Q", text="text:N"), COLOURS["paper"]
    style |= {"fontSize": 11, "aria": False}
    return [
        text.mark_text(stroke=paper, strokeWidth=width, color=paper, **style),
        text.mark_text(**style).encode(color=alt.Color("colour:N", scale=None)),
    ]


def prompt_map(prompts: PromptFacts, classes: Sequence[str]) -> Markup:
    """Prompts on their first two principal components, with each class's name at its mean."""
    points = prompts.points
    rows = [
        {
            # Colour 0 is the teacher's. When all others are used, the next shape begins.
            "x": float(x), "y": float(y), "colour": series(1 + label % (SERIES - 1)),
            "shape": SHAPES[label // (SERIES - 1) % len(SHAPES)],
            "about": f"{classes[label]}: {text[:MAX_PROMPT_LENGTH]}",
        }
        for (x, y), label, text in zip(points, prompts.labels.tolist(), prompts.texts, strict=True)
    ]  # fmt: skip
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.maximum(high - low, 1e-6) * 0.12
    (x0, y0), (x1, y1) = (low - room).tolist(), (high + room).tolist()
    hidden = alt.Axis(title=None, labels=False, ticks=False, domain=False, tickCount=4)
    x = alt.X("x:Q", scale=alt.Scale(domain=[x0, x1], nice=False), axis=hidden)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[y0, y1], nice=False), axis=hidden)
    dots = (
        data_chart(rows)
        .mark_point(filled=True, size=22, opacity=0.75)
        .encode(x=x, y=y, color=alt.Color("colour:N", scale=None),
                shape=alt.Shape("shape:N", scale=None), description="about:N")
    )  # fmt: skip
    labels = _class_labels(prompts, classes, (x0, y0), (x1, y1))
    chart = alt.layer(dots, *_outlined(labels, 3, fontWeight=600))
    chart = chart.properties(width=MAP_WIDTH, height=MAP_HEIGHT)
    return _rendered(chart, f"Map of the prompts of method {prompts.method}")


def _moved_down(
    x: float, y: float, half: float, placed: Sequence[tuple[float, float, float]]
) -> float:
    """The first height from `y` on at which a label of half width `half` overlaps none in `placed`.

    More than `MAP_HEIGHT` if there is none in the plot.
    """
    while y <= MAP_HEIGHT and any(
        abs(x - a) < half + b and abs(y - c) < LABEL_DISTANCE for a, b, c in placed
    ):
        y += 1
    return y


def _class_labels(
    prompts: PromptFacts,
    classes: Sequence[str],
    low: tuple[float, float],
    high: tuple[float, float],
) -> list[dict[str, Any]]:
    """Class names at the class means, moved down where two would overlap.

    A name that would leave the plot is left out; its points still have tooltips.

    Args:
        low: the lower ends of both axes.
        high: their upper ends.
    """
    present = sorted(set(prompts.labels.tolist()))
    means = [prompts.points[prompts.labels == label].mean(axis=0) for label in present]
    xs = [MAP_WIDTH * (m[0] - low[0]) / (high[0] - low[0]) for m in means]
    ys = [MAP_HEIGHT * (1 - (m[1] - low[1]) / (high[1] - low[1])) for m in means]
    placed: list[tuple[float, float, float]] = []
    rows: list[dict[str, Any]] = []
    # From top to bottom: a label only has to avoid those above it. Widths are estimated at 6.6
    # pixels for each character.
    for i in sorted(range(len(present)), key=lambda i: ys[i]):
        name = classes[present[i]]
        half = 3.3 * len(name)
        x = min(max(xs[i], half), MAP_WIDTH - half)
        y = _moved_down(x, ys[i], half, placed)
        if y > MAP_HEIGHT:
            continue
        placed.append((x, half, y))
        rows.append(
            {
                "text": name,
                "colour": COLOURS["ink"],
                "x": low[0] + x / MAP_WIDTH * (high[0] - low[0]),
                "y": low[1] + (1 - y / MAP_HEIGHT) * (high[1] - low[1]),
            }
        )
    return rows
