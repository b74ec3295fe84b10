"""The device that a process works on, and how many threads it may use."""

import torch


def pick_device() -> torch.device:
    """The CUDA device that this process may see, else the CPU.

    Ray shows a worker only the GPUs that it reserved, so that this is right inside and outside.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads(cpus: float) -> None:
    """Let torch use the CPUs that were reserved, at least one, and no more."""
    torch.set_num_threads(max(1, int(cpus)))
