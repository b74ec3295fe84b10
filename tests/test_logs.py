"""The lines of a job's log: one of JSON for each task, where nobody watches a bar."""

import json
import subprocess
import sys
from datetime import datetime

from jobs import ROOT

TALK = """
from contextlib import nullcontext
from dfkd import logs
with logs.shown():
    logs.task_done(run="0123456789abcdef", task="0003-00001", attempt=2, seconds=4.21349, images=11,
                   failed=1, bytes=1234, node="10.0.0.7")
    logs.task_quarantined(run="0123456789abcdef", task="0003-00002", images=12, reason="no\\nluck")
"""


def test_a_task_is_one_line_of_json_on_stderr() -> None:
    found = subprocess.run([sys.executable, "-c", TALK], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    done, quarantined = map(json.loads, found.stderr.splitlines())
    for line in (done, quarantined):
        assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert done == {
        "event": "task",
        "run": "0123456789abcdef",
        "task": "0003-00001",
        "attempt": 2,
        "seconds": 4.213,
        "images": 11,
        "failed": 1,
        "bytes": 1234,
        "node": "10.0.0.7",
    }
    assert quarantined == {
        "event": "quarantined",
        "run": "0123456789abcdef",
        "task": "0003-00002",
        "images": 12,
        "reason": "no\nluck",
    }


def test_a_program_that_uses_the_library_hears_nothing_unasked() -> None:
    silent = TALK.replace("logs.shown()", "nullcontext()")
    found = subprocess.run([sys.executable, "-c", silent], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0
    assert found.stderr == ""
