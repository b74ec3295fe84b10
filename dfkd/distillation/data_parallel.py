"""Data-parallel training of a student: what several ranks share at each step and at checkpoints."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dfkd.models.student import Student


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replace the floating-point buffers of `module` by their mean over all ranks, in place.

    These buffers are the student's constants, which stay as they are, and the running means and
    variances of batch norm, which each rank on a CPU computes from its own images. The mean is
    computed in float64, so equal values stay exactly the same.
    """
    if not torch.distributed.is_initialized():
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            total = buffer.double()
            torch.distributed.all_reduce(total)
            buffer.copy_(total / torch.distributed.get_world_size())


def share_batch_norm(student: Student) -> Student:
    """The student with batch norm over the images of all ranks instead of each rank's own.

    So the statistics are those of the whole batch, as with one rank. torch has such layers for GPUs
    only. The state dict keeps its keys.
    """
    # timm's function, because torch's own would drop the activations that timm's layers contain.
    # Imported here, because it takes seconds and few ranks need it.
    from timm import layers

    convert: Any = layers.convert_sync_batchnorm  # type: ignore[attr-defined]  # has no types
    shared: Student = convert(student)
    return shared


def distribute(module: nn.Module, precision: str) -> nn.Module:
    """`module` in DDP, without broadcast buffers: `average_buffers` handles batch-norm statistics.

    With bfloat16 precision the gradients are sent in bfloat16, because a float32 all-reduce on a
    CPU takes half as long as a step. The setting decides, not the device's capability, so that all
    ranks use the same format.
    """
    device = next(module.parameters()).device
    ids = [device] if device.type == "cuda" else None
    # torch deprecates `broadcast_buffers`; its successor is missing in older versions, and set to
    # False still copies buffers at the start.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parallel = DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    if precision == "bfloat16":
        parallel.register_comm_hook(None, _compressed)
    return parallel


def _compressed(
    group: torch.distributed.ProcessGroup,
    bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """`bf16_compress_hook` under another name: torch refuses that name over gloo, which works."""
    return bf16_compress_hook(group, bucket)
