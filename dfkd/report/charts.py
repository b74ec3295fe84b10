"""The charts of a page; each is small enough for a phone.

A chart is a Vega-Lite specification in placeholder colours, which `svg.py` draws. Marks have their
own labels instead of a legend, so that no colour has to be looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from markupsafe import Markup

from dfkd.report.svg import COLOURS, SERIES, axis_style, band, data_chart, draw

BARS_WIDTH = 190
"""Pixels of the plot of `bars`, from 0 to 100 percent."""
NAMES_WIDTH = 122
"""Pixels for the names left of the bars, which are cut a little earlier: the page's own font may be
wider than the one that measures them."""
FIGURE_WIDTH = 42
"""Pixels for the figure of a bar that reaches 100 percent."""


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
    room = {"left": 16, "right": 20, "top": 4, "bottom": 4}
    chart = chart.configure(background="transparent", padding=room).configure_view(stroke=None)
    return draw(chart.configure_axis(**axis), label)


def _bar_rows(title: str, models: Sequence[ModelBar]) -> list[dict[str, Any]]:
    """The data of `bars`, in percent."""
    return [
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


def bars(title: str, models: Sequence[ModelBar]) -> Markup:
    """Accuracy of each model as a labelled bar, with a line of ± one standard deviation.

    All charts of as many models have the same size and scale, so that bars of two charts compare.
    """
    rows = _bar_rows(title, models)
    scale = alt.Scale(domain=[0, 100])
    axis = alt.Axis(values=[0, 25, 50, 75, 100], title=None, domain=False, ticks=False)
    names = alt.Axis(
        title=None, domain=False, ticks=False, labelAlign="left", labelPadding=NAMES_WIDTH,
        labelColor=COLOURS["ink"], labelLimit=NAMES_WIDTH - 16, labelFontSize=12,
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
    # Sizes that do not follow from the widths of texts, which differ between charts.
    room = {"left": NAMES_WIDTH + 2, "right": FIGURE_WIDTH, "top": 4, "bottom": 20}
    chart = alt.layer(*layers).properties(
        width=BARS_WIDTH, height=22 * len(rows), padding=room, autosize="none"
    )
    return _rendered(chart, f"Accuracy on {title}, in percent")
