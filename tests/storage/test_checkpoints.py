from pathlib import Path

import pytest
import torch

from dfkd.errors import CorruptionError
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage


def test_the_newest_two_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    assert checkpoints.newest() == 0
    for step in (5, 40, 300):
        checkpoints.write(step, {"step": torch.tensor(step)})
    assert checkpoints.newest() == 300
    assert int(checkpoints.read(40)["step"]) == 40
    with pytest.raises(CorruptionError):
        checkpoints.read(5)
    checkpoints.clear()
    assert checkpoints.newest() == 0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    checkpoints.write(7, {"step": torch.tensor(7)})
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptionError, match=path.name):
        checkpoints.read(7)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """The bit belongs to a value, so safetensors alone would not notice."""
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    kinds = {"half": torch.ones(3, dtype=torch.bfloat16), "none": torch.empty(0, 4)}
    state = {"weight": torch.rand(4, 3).t(), "step": torch.tensor(7), **kinds}
    checkpoints.write(7, {name: tensor.contiguous() for name, tensor in state.items()})
    found = checkpoints.read(7)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    (path,) = tmp_path.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptionError, match="tensors have another sha256"):
        checkpoints.read(7)
