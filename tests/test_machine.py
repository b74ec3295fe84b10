import json
import os
from pathlib import Path

import pytest

from dfkd.machine import cpus, machine, processor


def test_the_facts_are_this_machine() -> None:
    facts = json.loads(json.dumps(machine()))
    assert facts["processor"] == processor() != ""
    assert facts["cpus"] == cpus() == len(os.sched_getaffinity(0))
    total = Path("/proc/meminfo").read_text().split()[1]
    assert facts["memory"] == pytest.approx(1024 * int(total), rel=0.05)


def test_where_the_system_knows_no_affinity_all_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine()["cpus"] == cpus() == os.cpu_count()
