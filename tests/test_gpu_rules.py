"""All stages on an emulated CUDA device: none mixes devices, or reads a GPU's memory directly."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfkd.models.generators.diffusers_folder import SCHEDULERS
from tests.helpers import emulated_cuda
from tests.helpers.inversion_runs import METHODS

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs a torch without CUDA"),
    pytest.mark.skipif(not emulated_cuda.COMPILER, reason="needs a C++ compiler"),
]

SCORED = ["synthesize", "distill", "evaluate", "export_candidates", "few_shot"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_cuda.build(tmp_path_factory.mktemp("library"))


def python(library: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LD_PRELOAD": str(library)}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("run", "stages"),
    [
        pytest.param("diffusion", SCORED, marks=pytest.mark.slow),
        pytest.param("vqgan", SCORED, marks=pytest.mark.slow),
        pytest.param("schedulers", list(SCHEDULERS), marks=pytest.mark.slow),
        *((method, SCORED[:2]) for method in METHODS),
    ],
)
def test_a_run_obeys_the_rules_of_a_gpu(
    library: Path, tmp_path: Path, run: str, stages: list[str]
) -> None:
    done = python(library, "-m", "tests.helpers.gpu_stages", run, str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    counts = dict(re.findall(r"^(\w+): (\d+) operations$", done.stdout, re.M))
    assert list(counts) == stages
    assert all(int(count) > 500 for count in counts.values())


BREACHES = {
    "tensors of two devices": "torch.zeros(3, device=DEVICE) + torch.zeros(3)",
    "a matrix of the other device": "torch.zeros(3, 3, device=DEVICE) @ torch.zeros(3, 3)",
    "an index of the device into the CPU": "torch.zeros(3)[torch.zeros(1, device=DEVICE).long()]",
    "a generator of the CPU": "torch.rand(3, generator=torch.Generator(), device=DEVICE)",
    "a generator of the device": "torch.rand(3, generator=torch.Generator(DEVICE))",
    "NumPy on the device": "torch.zeros(3, device=DEVICE).numpy()",
}
CODE = """
import os
from tests.helpers.emulated_cuda import DEVICE, install
install()
import torch
layer = torch.nn.Linear(2, 2).to(DEVICE)
with torch.autocast("cuda", torch.bfloat16):
    output = layer(torch.ones(1, 2, device=DEVICE) * torch.tensor(2.0))
assert (output.device, output.dtype) == (DEVICE, torch.bfloat16)
output.sum().backward()
assert layer.weight.grad.cpu().tolist() == [[2.0, 2.0], [2.0, 2.0]]
for name, breach in {breaches!r}.items():
    try:
        eval(breach)
    except (RuntimeError, TypeError) as error:
        # Not a subclass: torch's NotImplementedError would tell of a gap in the emulation.
        if type(error) in (RuntimeError, TypeError) and "device" in str(error):
            continue
    raise SystemExit(name + " was not refused")
os._exit(0)
"""


def test_the_emulated_device_refuses_what_cuda_refuses(library: Path) -> None:
    done = python(library, "-c", CODE.format(breaches=BREACHES))
    assert done.returncode == 0, done.stderr[-4000:]
