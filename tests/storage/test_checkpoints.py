import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dfkd.errors import CorruptionError
from dfkd.storage.checkpoints import Checkpoints, moments, restore_moments
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


def test_the_first_checkpoint_of_a_step_stays(tmp_path: Path) -> None:
    """A rank that was thought dead may write the step that its successor has read."""
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    for value in (0, 1):
        checkpoints.write(7, {"value": torch.tensor(value)})
    assert int(checkpoints.read(7)["value"]) == 0


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    checkpoints.write(7, {"step": torch.tensor(7)})
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptionError, match=path.name):
        checkpoints.read(7)


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": None, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
        {"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
    ],
    ids=["no metadata", "a dtype that torch lacks"],
)
def test_a_valid_file_of_a_stranger_is_named(tmp_path: Path, header: dict[str, object]) -> None:
    text, storage = json.dumps(header).encode(), open_storage(str(tmp_path))
    storage.put("0000000007.safetensors", len(text).to_bytes(8, "little") + text + bytes(1))
    with pytest.raises(CorruptionError, match=r"0000000007\.safetensors: not a checkpoint"):
        Checkpoints(storage).read(7)


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


@pytest.mark.parametrize(("old", "new"), [(b"[2,3]", b"[3,2]"), (b'"F32"', b'"I32"')])
def test_a_changed_header_is_found_although_the_bytes_are_the_same(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    checkpoints.write(7, {"weight": torch.rand(2, 3)})
    (path,) = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CorruptionError, match="tensors have another sha256"):
        checkpoints.read(7)


def optimizer(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """An optimizer of a matrix and a vector after one step."""
    parameters = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
    made = kind(parameters, 0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    sum(each.sum() for each in parameters).backward()
    made.step()
    return made


KINDS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_restored(kind: type[torch.optim.Optimizer]) -> None:
    saved = {name: value + 1 for name, value in moments(optimizer(kind)).items()}
    other = optimizer(kind)
    restore_moments(other, saved)
    assert moments(other).keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in moments(other).items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda name, value: (name, value.new_zeros(1)),
        lambda name, value: (name, value.flatten().repeat(2)),
        lambda name, value: (name, value.to(torch.complex64)),
        lambda name, value: (name.replace(".1.", ".2."), value),
        lambda name, value: (name.replace(".1.", ".-1."), value),
        lambda name, value: (name.replace(".1.", "."), value),
        lambda name, value: (f"{name}s", value),
    ],
)
def test_moments_of_another_optimizer_are_refused(
    kind: type[torch.optim.Optimizer], change: Callable[[str, Tensor], tuple[str, Tensor]]
) -> None:
    """Fused kernels would run over raw memory."""
    saved = moments(optimizer(kind))
    for key in [name for name in saved if name.startswith("optimizer.1.")]:
        name, value = change(key, saved[key])
        with pytest.raises((LookupError, ValueError)):
            restore_moments(
                optimizer(kind), {k: v for k, v in saved.items() if k != key} | {name: value}
            )


def test_moments_of_another_kind_of_optimizer_are_refused() -> None:
    for kind, other in (KINDS[:2], KINDS[1::-1]):
        with pytest.raises(ValueError, match="moments"):
            restore_moments(optimizer(kind), moments(optimizer(other)))
