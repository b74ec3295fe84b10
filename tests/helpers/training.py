"""A training that is interrupted, and the weights of one that is not."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from dfkd.lab.miniature.training import Resumable


def interrupt_after_saving(trainer: Resumable) -> None:
    """Run a training until its first checkpoint is written."""
    save = trainer.save

    def save_and_stop() -> None:
        save()
        raise KeyboardInterrupt

    with patch.object(trainer, "save", save_and_stop), pytest.raises(KeyboardInterrupt):
        trainer.run()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same bits."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )
