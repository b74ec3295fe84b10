"""The threads of this process, which tests change."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def own_threads() -> Iterator[None]:
    """A test may set the number of threads; the number before it comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
