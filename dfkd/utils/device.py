"""How torch is set up in a process: its device, its threads, what memory it keeps, its seeds."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from dfkd.errors import ManifestError
from dfkd.utils.types import Precision

CPU = torch.device("cpu")


def pick_device() -> torch.device:
    """The visible CUDA device, else the CPU; also disables TF32 in this process.

    A worker sees only the GPUs that it has reserved (see `dfkd.cluster.capacity`), so the
    choice is right there too.
    """
    # By default torch lets cuDNN round the inputs of a convolution to TF32 (10 bits of mantissa),
    # and NVIDIA's container images do the same for matrix products by an environment variable. That
    # is too coarse, because distances to class prompts differ by a few hundredths. The key
    # `precision: bfloat16` buys speed instead, and it affects neither labels nor distances.
    # torch 2.9 added `fp32_precision`. It is not used here, because torch raises when it is set and
    # a library then reads one of the two settings below.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def try_gpu() -> None:
    """Compute one number on the GPU that `pick_device` gives.

    Initialisation alone passes with a card that is too old for this torch's kernels.

    Raises:
        AssertionError, RuntimeError: torch cannot use it.
    """
    torch.ones(1, device="cuda").sum().item()


def device_name(device: torch.device) -> str:
    """The name of the GPU, or `cpu`."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def configure_process(cpus: float) -> None:
    """Set up a worker process for the `cpus` that are reserved for it: at least one thread."""
    torch.set_num_threads(max(1, int(cpus)))
    # By default glibc returns large tensors to the kernel as soon as they are freed. The next step
    # then gets zeroed memory page by page, which takes about a tenth of synthesis on a CPU.
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # glibc's maximum
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of `mallopt`, from glibc's malloc.h."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in GPU memory or in main memory."""
    # torch's CPU allocator and the GPU libraries raise a plain RuntimeError.
    text = str(error).lower()
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in text for words in _ALLOCATION_FAILURES)


_ALLOCATION_FAILURES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
    "could not create a primitive",  # oneDNN, which gives no reason
    "unable to find an engine",  # cuDNN, where no algorithm's workspace fits
    # Handles and kernels are loaded outside torch's allocator, which may have taken all memory.
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
)


@contextlib.contextmanager
def memory_limited_by(key: str, value: object, remedy: str) -> Iterator[None]:
    """Raise `ManifestError` about a manifest key if an allocation fails inside the block.

    Args:
        value: that of the key.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ManifestError(key, "must fit the device's memory", value, remedy) from None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Not every version of torch has this function.
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return features.get("avx512_bf16", False) or features.get("amx_bf16", False)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context with mixed precision if `precision` is bfloat16 and the device supports it."""
    mixed = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore their states afterwards.

    Weight initialisation and drop-path draw from these generators.

    Args:
        device: the device whose generator is seeded in addition to the CPU's.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
