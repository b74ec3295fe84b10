import json
import os
from pathlib import Path

import pytest

from dfkd.machine import machine, processor


def test_the_facts_are_this_machine() -> None:
    facts = json.loads(json.dumps(machine()))
    assert facts["processor"] == processor() != ""
    assert facts["cpus"] == len(os.sched_getaffinity(0))
    total = Path("/proc/meminfo").read_text().split()[1]
    assert facts["memory"] == pytest.approx(1024 * int(total), rel=0.05)
