"""The GPUs that Ray has reserved for a process are those that torch uses there."""

import os

import ray

from dfkd.errors import InfrastructureError, one_line


def see_reserved_gpus() -> None:
    """Let torch see the GPUs that this actor or task has reserved, and no others.

    Call it before CUDA starts. Ray hides the other GPUs only from a process that has reserved one.
    Processes without a GPU see all GPUs of their node, and each would use the first one.

    Raises:
        InfrastructureError: torch cannot use the GPU, and would compute on the CPU instead.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch  # here, because it takes seconds, and an actor without a GPU may need no torch

    try:
        torch.cuda.init()
    # A torch without CUDA says so by an AssertionError.
    except (AssertionError, RuntimeError) as error:
        node, reason = ray.util.get_node_ip_address(), one_line(error)
        raise InfrastructureError(
            f"cluster: torch cannot use the GPU that Ray has reserved on node {node} ({reason}); "
            "install a driver there that fits torch's CUDA, or start Ray there without GPUs, and "
            "run the same command again, it resumes"
        ) from None
