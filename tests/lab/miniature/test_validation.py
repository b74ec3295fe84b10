"""How images of a diffusion model are measured while it trains."""

import pytest
import torch

from dfkd.lab.miniature.validation import figure, frechet_distance


def test_the_distance_of_two_normal_distributions_is_as_published() -> None:
    """For covariances that commute it is |m1 - m2|^2 + sum (s1 - s2)^2 of the deviations s."""
    gen = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, generator=gen).double()
    # Whitened, so that mean and covariance are those below and not only near them.
    rows -= rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T
    turn = torch.linalg.qr(torch.randn(3, 3, generator=gen).double())[0]
    first = rows * torch.tensor([1.0, 2.0, 3.0]) @ turn.T
    second = rows * torch.tensor([1.5, 1.0, 3.0]) @ turn.T + torch.tensor([0.0, 2.0, 0.0])
    assert frechet_distance(first, second) == pytest.approx(4 + 0.5**2 + 1, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    # Fewer rows than dimensions have a covariance without full rank.
    assert frechet_distance(first[:2], first[:2]) == pytest.approx(0, abs=1e-6)


def test_the_curve_has_a_line_for_each_guidance() -> None:
    validations = [
        {"images": images, "guidance 1": {"named": share}, "guidance 3": {"named": share + 0.1}}
        for images, share in ((100, 0.5), (200, 0.625))
    ]
    drawn = figure(validations).decode()
    assert drawn.startswith("<svg")
    for text in ("guidance 1", "guidance 3", "100", "200"):
        assert f">{text}<" in drawn
