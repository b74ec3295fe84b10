"""Paired differences and their intervals, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.lab.studies.results import Difference, difference


def test_an_interval_of_three_pairs_by_hand() -> None:
    """Differences of 1, 2 and 3 points: s = 1, and t(0.975, 2) = 4.302653 in any table of it."""
    found = difference({0: 0.51, 1: 0.62, 2: 0.73}, {2: 0.70, 1: 0.60, 0: 0.50})
    half = 4.302653 * 0.01 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))


def test_only_seeds_that_both_have_count() -> None:
    assert difference({0: 0.5, 1: 0.9}, {0: 0.25, 2: 0.1}) == Difference(0.25, None, None)
    assert difference({0: 0.5}, {1: 0.25}) is None


@given(st.dictionaries(st.integers(0, 9), st.floats(0, 1), min_size=2), st.floats(-0.5, 0.5))
def test_a_constant_difference_has_an_interval_without_width(
    theirs: dict[int, float], more: float
) -> None:
    found = difference({seed: value + more for seed, value in theirs.items()}, theirs)
    assert (found.mean, found.low, found.high) == pytest.approx((more,) * 3, abs=1e-12)
