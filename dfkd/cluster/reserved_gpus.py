"""The GPUs that Ray has reserved for a process are those that torch sees there."""

import os

import ray


def see_reserved_gpus() -> None:
    """Hide from this actor or task all GPUs that it has not reserved; call it before CUDA starts.

    Ray does so for a process with a GPU. To one without it shows all GPUs of the node, and every
    such process would use the first of them.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
