import torch
from torch import Tensor

from dfkd.utils.device import seeded


def drawn(seed: int) -> Tensor:
    with seeded(seed):
        return torch.nn.functional.dropout(torch.ones(64), 0.5)


def test_what_is_drawn_inside_comes_from_the_seed() -> None:
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_the_generator_is_as_it_was_before() -> None:
    before = torch.get_rng_state()
    drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
