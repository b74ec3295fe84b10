"""Charts as files."""

import io
import re

import pytest
from PIL import Image

from dfkd.evaluation.results import Spread
from dfkd.lab.charts import COLOURS, RenderedChart, Scatter, Series, bars, curve, maps

NAME = "<b>&\"'"


def spread(mean: float, std: float | None = None) -> Spread:
    return Spread(mean=mean, std=std)


def require_picture(drawn: RenderedChart, *texts: str) -> str:
    svg = drawn.svg.decode()
    assert svg.startswith("<svg")
    assert "<b>" not in svg
    for text in texts:
        assert f">{text}</text>" in svg
    with Image.open(io.BytesIO(drawn.png)) as image:
        assert image.format == "PNG"
        assert image.width > 600
    return svg


def test_a_curve_has_a_line_and_a_legend_for_each_series() -> None:
    found = [
        Series("mean", ((6, spread(0.6, 0.02)), (36, spread(0.72)))),
        Series(NAME, ((6, spread(0.5)), (36, spread(0.8, 0.01)))),
    ]
    drawn = curve("Title", "images", "accuracy, %", found, first_is_mean=True)
    svg = require_picture(drawn, "Title", "images", "accuracy, %", "6", "36", "mean")
    assert svg.count('stroke-width="3"') == 1
    assert COLOURS[1] in svg
    assert curve("Title", "images", "accuracy, %", found, first_is_mean=True).svg == drawn.svg
    alike = curve("Title", "images", "accuracy, %", found, first_is_mean=False)
    assert b'stroke-width="3"' not in alike.svg


@pytest.mark.parametrize("places", [(0, 8), (0, 1), (5,)])
def test_a_curve_may_start_at_zero_or_have_one_place(places: tuple[int, ...]) -> None:
    line = Series("mean", tuple((place, spread(0.5)) for place in places))
    require_picture(
        curve("Title", "views", "accuracy, %", [line], first_is_mean=True), *map(str, places)
    )


def test_bars_stand_in_groups() -> None:
    found = [
        Series("shuffle", (("pixel", spread(0.6, 0.02)), ("mean", spread(0.7)))),
        Series(NAME, (("pixel", spread(0.99, 0.5)), ("mean", spread(0.8)))),
    ]
    svg = require_picture(
        bars("Title", "class mean, %", found), "pixel", "mean", "shuffle", "class mean, %"
    )
    assert svg.count('aria-roledescription="bar"') == 4


def test_maps_share_a_legend_and_have_a_plot_each() -> None:
    points = [(0.0, 1.0), (2.0, 3.0), (4.0, 0.0)]
    before = Scatter("Mix, before", points, ["cat", "dog", "cat"], [False, True, False])
    after = Scatter("Mix, after 4 shots", points, ["cat", "cat", "cat"], [False] * 3)
    svg = require_picture(maps("t-SNE", [[before, after], [before]]), before.name, after.name)
    assert svg.count(">cat</text>") == svg.count(">dog</text>") == 1
    assert svg.count('aria-roledescription="point"') == 9
    cats = re.findall(r'aria-label="[^"]*series: cat"[^>]* fill="([^"]+)"', svg)
    assert len(cats) == 7
    assert len(set(cats)) == 1
    assert svg.count('opacity="0.3"') == 2


def test_many_classes_are_told_apart_by_shape() -> None:
    names = [f"class {number:02d}" for number in range(2 * len(COLOURS))]
    points = [(float(number), 0.0) for number in range(len(names))]
    svg = require_picture(
        maps("t-SNE", [[Scatter("Mix", points, names, [False] * len(names))]]), names[0], names[-1]
    )
    drawn = re.findall(r'aria-roledescription="point" [^>]* d="([^"]+)" fill="([^"]+)"', svg)
    assert len(drawn) == len(set(drawn)) == len(names)
    assert {len({shape for shape, _ in drawn}), len({fill for _, fill in drawn})} == {2, 12}
