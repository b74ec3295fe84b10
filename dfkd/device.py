"""The device that a process works on, and how many threads it may use."""

from typing import Literal

import torch


def pick_device() -> torch.device:
    """The CUDA device that this process may see, else the CPU.

    Ray shows a worker only the GPUs that it reserved, so that this is right inside and outside.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What a reader knows the device by: the GPU's name, or `cpu`."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def use_threads(cpus: float) -> None:
    """Let torch use the CPUs that were reserved, at least one, and no more."""
    torch.set_num_threads(max(1, int(cpus)))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return features.get("avx512_bf16", False) or features.get("amx_bf16", False)


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """Mixed precision for what runs inside: bfloat16 if asked for and the device multiplies it."""
    mixed = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)
