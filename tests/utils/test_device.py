"""How a process keeps memory and random state, and that float32 is float32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dfkd
from dfkd.cluster.making import identify
from dfkd.cluster.worker import Worker
from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import begin
from dfkd.errors import ManifestError
from dfkd.storage.local import open_storage
from dfkd.utils.device import (
    CPU,
    autocast,
    configure_process,
    memory_limited_by,
    pick_device,
    seeded,
)
from tests.helpers.tiny_version import write_manifest
from tests.helpers.workers import own_worker

FAULTS = """
import resource, torch
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return [torch.ones(1 << 20) for _ in range(10)] and None
for _ in range(3):
    step()
begun = faults()
for _ in range(5):
    step()
print(faults() - begun)
"""


def page_faults(before: str) -> int:
    """The page faults of five steps that each make ten tensors of 4 MiB and free them."""
    command = [sys.executable, "-c", FAULTS.format(before=before)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_freed_memory_is_used_again() -> None:
    """At least half of it: a new heap may still grow, and other processes need memory too."""
    kept = page_faults("import dfkd.utils.device; dfkd.utils.device.configure_process(1)")
    assert kept < 0.5 * page_faults("import dfkd.utils.device; torch.set_num_threads(1)")


FLAGS = """
import json, torch
{before}
backends = torch.backends
print(json.dumps([
    torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32,
    backends.cudnn.allow_tf32, backends.cudnn.conv.fp32_precision == "tf32",
    backends.cudnn.rnn.fp32_precision == "tf32", backends.cuda.matmul.fp32_precision == "tf32",
]))
with backends.cudnn.flags(enabled=False):  # raises if old and new settings contradict each other
    pass
"""


def flags(before: str) -> list[str | bool]:
    """The precision of matrix products, and whether each of torch's settings allows TF32."""
    command = [sys.executable, "-W", "error", "-c", FLAGS.format(before=before)]
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}  # as in NVIDIA's images
    found = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return list(json.loads(found.stdout))


def test_a_process_that_works_for_us_has_no_tf32() -> None:
    assert flags("") == ["high", True, True, True, True, True]
    found = flags("import dfkd.utils.device; dfkd.utils.device.pick_device()")
    assert found == ["highest", *[False] * 5]


def test_a_worker_has_no_tf32_once_it_has_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identify(manifest))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    own_worker(manifest, version, Worker).load_teacher()
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("could not create a primitive"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError(
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    ],
)
def test_a_failed_allocation_names_the_key_that_limits_memory(error: Exception) -> None:
    with (
        pytest.raises(
            ManifestError, match=r"some\.key: must fit the device's memory, got 8; lower it"
        ),
        memory_limited_by("some.key", 8, "lower it"),
    ):
        raise error


def test_other_errors_are_no_failed_allocations() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_limited_by("some.key", 8, "lower it"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(("cpus", "threads"), [(0.25, 1), (1.0, 1), (2.9, 2)])
@pytest.mark.usefixtures("own_threads")
def test_a_worker_has_a_thread_for_each_whole_cpu_and_one_at_least(
    cpus: float, threads: int
) -> None:
    configure_process(cpus)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": 1}, False)],
)
def test_a_cpu_computes_in_bfloat16_only_with_its_instructions(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    product = torch.ones(2, 2)
    with autocast(CPU, "bfloat16"):
        assert ((product @ product).dtype == torch.bfloat16) == expected
    with autocast(CPU, "float32"):
        assert (product @ product).dtype == torch.float32


def test_a_seeded_block_draws_from_its_seed_and_restores_the_generator() -> None:
    def draw(seed: int) -> torch.Tensor:
        with seeded(seed):
            return torch.rand(64)

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_is_only_used_through_pick_device() -> None:
    sources = Path(dfkd.__file__).parent.rglob("*.py")
    making = ('device("cuda', "device='cuda", 'device="cuda', ".cuda(")
    found = {path.name for path in sources if any(word in path.read_text() for word in making)}
    assert found == {"device.py"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_multiplies_and_convolves_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 64, 32, 32, generator=generator)
    kernels = torch.randn(64, 64, 3, 3, generator=generator)
    left, right = torch.randn(2, 512, 512, generator=generator)
    device = pick_device()
    for operation, operands in (
        (torch.nn.functional.conv2d, (images, kernels)),
        (torch.mm, (left, right)),
    ):
        exact = operation(*(each.double() for each in operands))
        found = operation(*(each.to(device) for each in operands)).cpu()
        assert (found - exact).abs().max() < 1e-4 * exact.std()  # with TF32 about 1e-3
