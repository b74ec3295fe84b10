"""Quantiles of Student's t against its printed tables."""

import pytest

from dfkd.utils.intervals import half_width, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423)],
)
def test_a_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_with_many_degrees_it_is_that_of_the_normal_distribution() -> None:
    assert t_quantile(10**4) == pytest.approx(1.95996, abs=5e-4)


def test_an_interval_needs_two_values() -> None:
    assert half_width([0.5]) is None
    assert half_width([0.5, 0.5]) == 0
    # s = 0.1 sqrt(0.5)
    assert half_width([0.5, 0.6]) == pytest.approx(12.7062 * 0.05, rel=1e-5)
