"""How a process keeps memory."""

import subprocess
import sys

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
    """Of five steps that make ten tensors of 4 MiB and free them all."""
    command = [sys.executable, "-c", FAULTS.format(before=before)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_freed_memory_is_used_again() -> None:
    """Most of it: a heap may still grow while it is new, and other processes press on memory."""
    kept = page_faults("import dfkd.device; dfkd.device.keep_freed_memory()")
    assert kept < 0.5 * page_faults("import dfkd.device")
