"""Checkpoints of a training run: numbered objects, each a safetensors file.

The metadata of a file hold the sha256 of its tensors.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dfkd.errors import CorruptionError
from dfkd.storage.base import Storage

KEEP = 2
"""Number of checkpoints kept: another rank may still be reading the one before the newest."""
NAME = re.compile(r"([0-9]{10})\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints under one storage prefix, each named by the last step before it."""

    storage: Storage

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        steps = self._steps()
        return steps[-1] if steps else 0

    def write(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Save the state after `step` and delete all but the newest `KEEP` checkpoints."""
        # Put-if-absent, because a rank that was thought dead may still write the same step.
        metadata = {"sha256": _digest(tensors)}
        self.storage.put_if_absent(_key(step), safetensors.torch.save(tensors, metadata))
        for old in self._steps()[:-KEEP]:
            self.storage.delete(_key(old))

    def read(self, step: int) -> dict[str, Tensor]:
        """The state after `step`, on the CPU; `CorruptionError` if it is damaged."""
        data = self.storage.get(_key(step))
        # safetensors checks its header only, so a flipped bit of a tensor shows in the hash alone.
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")  # of the header that follows
            metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
            if metadata.get("sha256") != _digest(tensors):
                raise SafetensorError("its tensors have another sha256 than they were written with")
        # A stranger's file may have a dtype that torch lacks: a KeyError.
        except (SafetensorError, KeyError) as error:
            raise CorruptionError(
                f"{self.storage.location(_key(step))}: not a checkpoint ({error}); delete it and "
                "run again, training resumes from the one before"
            ) from None
        return tensors

    def clear(self) -> None:
        """Delete all checkpoints."""
        for step in self._steps():
            self.storage.delete(_key(step))

    def _steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order as keys are listed."""
        return [int(match[1]) for key in self.storage.list() if (match := NAME.fullmatch(key))]


def _key(step: int) -> str:
    """The key of a checkpoint; ten digits, so that keys sort by step."""
    return f"{step:010d}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of the tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each parameter, as tensors named `optimizer.INDEX.NAME`."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `moments` took from an SGD or Adam with the same parameters.

    Raises:
        LookupError, ValueError: the other optimizer was of another kind or had other parameters.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in below(tensors, "optimizer.").items():
        index, _, name = key.partition(".")
        if not index.isdecimal():
            raise ValueError(f"{key}: {index} is no parameter")
        parameter = parameters[int(index)]
        # Fused kernels run over raw memory, so a moment needs the size of its parameter, and Adam's
        # count of steps that of a number.
        shape = torch.Size() if name == "step" else parameter.shape
        if value.dtype != parameter.dtype or value.shape != shape:
            raise ValueError(f"{key}: {value.dtype} of shape {tuple(value.shape)}")
        if name != "step":  # and its strides
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    names = {"momentum_buffer"} if is_sgd else {"step", "exp_avg", "exp_avg_sq"}
    for found in state.values():
        if found.keys() != names:
            raise ValueError(f"moments {sorted(found)}, not {sorted(names)}")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under names without the prefix."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
