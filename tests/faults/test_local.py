"""The demonstration on one machine: S3, `ray job submit`, and a node that dies half-way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ceph import missing

ROOT = Path(__file__).parents[2]
SMALL = ("synthesis.images_per_class=4", "synthesis.shard_size=2", "generator.diffusers.steps=3")

pytestmark = [pytest.mark.faults, pytest.mark.s3, pytest.mark.timeout(700)]


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_node_dies_and_the_data_set_is_whole() -> None:
    command = [sys.executable, "cluster/local.py"]
    for setting in SMALL:
        command += ["--set", setting]
    # Ray sees a dead node in seconds if it asks each of them often.
    often = os.environ | {"RAY_health_check_period_ms": "500"}
    done = subprocess.run(command, cwd=ROOT, env=often, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "killing the worker node" in done.stdout
    assert "vanilla: 48 images, 0 failed" in done.stdout
    assert "24 shards, 48 samples, 0 problems" in done.stdout
