"""A stride's direction is the gradient's, and its length the rate, for each row on its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dfkd.normalised import NormalisedDescent


def moved(before: Tensor, gradient: Tensor, rate: float) -> Tensor:
    parameter = before.clone().requires_grad_()
    parameter.grad = gradient.clone()
    NormalisedDescent([parameter], rate).step()
    return parameter.detach()


def test_a_stride_by_hand() -> None:
    """The root mean square of (1, 7) is 5, and that of (-6, 8) is the root of 50."""
    before = torch.tensor([[10.0, 20.0], [0.0, 0.0]])
    after = moved(before, torch.tensor([[1.0, 7.0], [-6.0, 8.0]]), rate=2.0)
    assert after[0].tolist() == pytest.approx([10 - 2 / 5, 20 - 14 / 5])
    assert after[1].tolist() == pytest.approx([12 / 50**0.5, -16 / 50**0.5])


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 5),
    rate=st.floats(1e-3, 10),
    scale=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_every_row_moves_as_far_whatever_the_size_of_its_gradient(
    seed: int, rows: int, rate: float, scale: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    before = torch.randn(rows, 3, 2, 2, generator=random)
    gradient = torch.randn(rows, 3, 2, 2, generator=random)
    change = moved(before, gradient * scale, rate) - before
    assert torch.allclose(
        change.square().mean(dim=(1, 2, 3)).sqrt(), torch.tensor(rate), rtol=1e-3, atol=1e-6
    )
    alone = moved(before[:1], gradient[:1] * scale, rate)
    assert torch.allclose(alone[0] - before[0], change[0], atol=1e-6)


@pytest.mark.parametrize("broken", [0.0, torch.nan, torch.inf])
def test_a_row_without_a_direction_stays(broken: float) -> None:
    before, gradient = torch.ones(2, 4), torch.ones(2, 4)
    gradient[1] = broken
    after = moved(before, gradient, 0.5)
    assert after[0].tolist() == [0.5] * 4
    assert after[1].tolist() == [1.0] * 4


def test_what_has_no_gradient_is_left_alone() -> None:
    parameter = torch.ones(2, 2, requires_grad=True)
    NormalisedDescent([parameter], 1.0).step()
    assert torch.equal(parameter, torch.ones(2, 2))
