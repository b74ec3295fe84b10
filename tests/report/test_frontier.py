"""The geometry of the picture: where points, steps and names lie."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.export.choice import Candidates, answer, frontier, points
from dfkd.report import frontier as picture
from dfkd.report.frontier import Label, Mark, Panel, panels
from tests.helpers.candidates import FOUR, candidate, parsed


def drawn(found: Candidates) -> list[Panel]:
    return panels(found, answer(found))


def box(label: Label) -> tuple[float, float, float, float]:
    """The letters alone, which are lower than the line."""
    width = picture.LETTER * len(label.text)
    return label.x, label.y - 5, label.x + width, label.y + 5


def covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def square(mark: Mark) -> tuple[float, float, float, float]:
    return mark.x - 4.5, mark.y - 4.5, mark.x + 4.5, mark.y + 4.5


@st.composite
def found_candidates(draw: st.DrawFn) -> Candidates:
    shares = st.floats(0, 1)
    costs = st.floats(0.01, 1000)
    made = []
    for number in range(draw(st.integers(1, 10))):
        values = draw(st.integers(1, 3))
        figures = [
            (draw(st.lists(shares, min_size=values, max_size=values)), draw(costs), draw(costs))
            for _ in range(2)
        ]
        name = f"{number} {'timm:test_resnet text-only'[: draw(st.integers(0, 26))]}"
        made.append(candidate(name, *figures, **({"images": 5} if values > 1 else {})))
    return parsed(*made)


@given(found_candidates())
def test_all_is_inside_and_no_name_covers_a_name_or_a_mark(found: Candidates) -> None:
    for panel in drawn(found):
        for mark in panel.marks:
            assert picture.LEFT < mark.x < picture.WIDTH - picture.RIGHT
            for y in (mark.y, mark.top, mark.bottom):
                assert picture.TOP <= y <= picture.HEIGHT - picture.BOTTOM
        for label in panel.labels:
            left, top, right, bottom = box(label)
            assert picture.LEFT <= left < right <= picture.WIDTH + 1
            assert top >= 0
            assert bottom <= picture.HEIGHT
            assert not any(covers(box(label), square(mark)) for mark in panel.marks)
        for one, other in itertools.combinations(panel.labels, 2):
            assert not covers(box(one), box(other))
        assert 1 <= len(panel.y_ticks) <= 7
        assert 1 <= len(panel.x_ticks) <= 8


@pytest.mark.parametrize("count", [1, 4, 10])
def test_each_candidate_is_named_once(count: int) -> None:
    """Also where ten of them lie on a few points."""
    made = [
        candidate(
            f"timm:test_resnet{n}",
            ([0.5 + n % 3 / 100], 2 + n / 10, 4 + n % 4),
            ([0.5], 1.5, 1 + n % 2),
        )
        for n in range(count)
    ]
    for panel in drawn(parsed(*made)):
        assert {label.text for label in panel.labels} == {each["name"] for each in made}


def test_the_steps_lead_through_the_frontier_and_to_the_edge() -> None:
    found = parsed(*FOUR)
    names = [each.name for each in points(found)]
    for panel, cost in zip(drawn(found), ("ms", "mb"), strict=True):
        at = dict(zip(names, panel.marks, strict=True))
        corners = [at[each.name] for each in frontier(points(found), cost)]
        path = f"M{corners[0].x:g} {corners[0].y:g}"
        path += "".join(f"H{corner.x:g}V{corner.y:g}" for corner in corners[1:])
        assert panel.steps == f"{path}H{picture.WIDTH - picture.RIGHT}"
        # Up is better.
        assert [corner.y for corner in corners] == sorted((c.y for c in corners), reverse=True)


def test_a_mark_lies_at_its_figures() -> None:
    """Half-way on a log scale between 1 and 100 is 10; the vertical axis goes from 40 to 60 %."""
    found = parsed(
        candidate("a", ([0.4], 1.0, 1.0), ([0.6], 100.0, 1.0)),
        candidate("b", ([0.5], 10.0, 1.0), ([0.5], 10.0, 1.0)),
    )
    (panel, _) = drawn(found)
    first, last, middle, _ = panel.marks
    assert middle.x == pytest.approx((first.x + last.x) / 2, abs=0.1)
    assert middle.y == pytest.approx((first.y + last.y) / 2, abs=0.1)
    assert [text for _, text in panel.y_ticks] == ["40", "45", "50", "55", "60"]
    assert [text for _, text in panel.x_ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert first.top == first.y == first.bottom
    assert re.search(r"^a: 40\.0 %, 1\.0 ms, 1\.0 MB$", first.title)


def test_kind_and_precision_are_told_by_shape_and_filling() -> None:
    (panel, _) = drawn(parsed(*FOUR))
    assert [(mark.kind, mark.hollow) for mark in panel.marks[2:6]] == [
        ("tower", False), ("tower", True), ("student", False), ("student", True),
    ]  # fmt: skip
    resnet = panel.marks[4]
    assert resnet.top < resnet.y < resnet.bottom
    assert {label.text: label.chosen for label in panel.labels} == {
        "teacher": False, "teacher text-only": True, "timm:test_resnet": True,
        "timm:<b>vit</b>": False,
    }  # fmt: skip
