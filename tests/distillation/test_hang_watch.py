import os
import signal
import subprocess
import sys
import time

import pytest

from dfkd.errors import Exit

BUSY = """
import time
from dfkd.distillation.hang_watch import HangWatch

def read_from_a_dead_disk():
    time.sleep(60)

with HangWatch({limit}, {later}) as watch:
    for _ in range({steps}):
        time.sleep({pause})
        watch.advanced()
    {end}
print("done")
"""


def start(
    limit: float, steps: int, pause: float, end: str = "", later: float = 60
) -> subprocess.Popen[str]:
    """A process with a watch that makes some steps."""
    program = BUSY.format(limit=limit, later=later, steps=steps, pause=pause, end=end)
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, encoding="utf-8")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("limit", "later", "steps", "may_be_raised"),
    [(2, 60, 1, True), (2, 1, 0, True), (60, 2, 1, False)],
)
def test_a_process_without_steps_ends_and_shows_where_it_hangs(
    limit: float, later: float, steps: int, may_be_raised: bool
) -> None:
    process = start(limit, steps, 0.1, "read_from_a_dead_disk()", later)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (Exit.RETRY, "")
    assert "no step within 2 seconds; run the same command again" in err
    assert ("raise cluster.task_timeout" in err) == may_be_raised
    assert "in read_from_a_dead_disk" in err


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("limit", "steps", "pause", "later"), [(3, 8, 0.5, 60), (0, 1, 1.5, 60), (60, 2, 2.5, 1)]
)
def test_a_process_that_makes_steps_or_may_take_any_time_goes_on(
    limit: float, steps: int, pause: float, later: float
) -> None:
    """The last process makes steps that are as long as its first."""
    process = start(limit, steps, pause, later=later)
    assert process.communicate(timeout=50) == ("done\n", "")
    assert process.returncode == Exit.DONE


@pytest.mark.heavy
def test_a_process_that_was_suspended_has_not_hung() -> None:
    process = start(3, 2, 1.0)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=50) == ("done\n", "")
