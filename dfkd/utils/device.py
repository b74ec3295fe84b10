"""The device that a process works on, how many threads it may use, and how it keeps memory."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from dfkd.utils.hardware import cpu_count
from dfkd.utils.types import Precision


def pick_device() -> torch.device:
    """The CUDA device that this process may see, else the CPU; from now on without TF32.

    Ray shows a worker only the GPUs that it reserved, so that this is right inside and outside.
    """
    forbid_tf32()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forbid_tf32() -> None:
    """Let this process compute in float32 what is float32, on a GPU too.

    By default torch lets cuDNN round the inputs of a convolution to TF32 (10 bits of mantissa), and
    NVIDIA's images turn that on for matrix products by an environment variable. Distances to class
    prompts differ by a few hundredths, so that speed is asked for by `precision: bfloat16`, which
    leaves labels and distances alone.
    """
    # Not `fp32_precision`, which torch has had since 2.9: with it set and these two left alone,
    # torch raises wherever a library reads them.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def device_name(device: torch.device) -> str:
    """What a reader knows the device by: the GPU's name, or `cpu`."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def use_threads(count: float) -> None:
    """Let torch use the CPUs that were reserved, at least one, and no more."""
    torch.set_num_threads(max(1, int(count)))


def configure_process(cpus: float) -> None:
    """Set up a process that does nothing but work on the CPUs that were reserved for it."""
    use_threads(cpus)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it allocates next; without glibc, do nothing.

    glibc gives large tensors back to the kernel as soon as they are freed, so that the next step
    gets its memory page by page and zeroed: about a tenth of the time of synthesis on a CPU.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the highest that glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; elsewhere it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return features.get("avx512_bf16", False) or features.get("amx_bf16", False)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision for what runs inside: bfloat16 if asked for and the device multiplies it."""
    mixed = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


@contextlib.contextmanager
def thread_limit(wanted: int) -> Iterator[int]:
    """Use so many threads within, or with 0 all that this process may; yields their number."""
    before = torch.get_num_threads()
    chosen = wanted if wanted > 0 else min(cpu_count(), before)
    use_threads(chosen)
    try:
        yield chosen
    finally:
        use_threads(before)
