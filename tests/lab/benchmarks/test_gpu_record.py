"""The record of the GPU kit: rows that fail, the limit, and what outlives the process."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.gpu.record import HEAD, JSON, PAGE, Row, RunRecord
from dfkd.lab.benchmarks.gpu.sizes import QUICK
from dfkd.storage.local import LocalStorage
from tests.helpers.jobs import ROOT

CPU = torch.device("cpu")


def write(folder: Path, planned: list[Row]) -> RunRecord:
    """A record of rows, begun now."""
    storage = LocalStorage(folder)
    storage.prepare()
    return RunRecord(storage, planned, "python -m x", 100, time.monotonic())


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / JSON).read_bytes())["rows"]
    return rows


def figure(value: float, **other: Any) -> dict[str, Any]:
    return {
        "unit": "1/s",
        "median": value,
        "least": value,
        "most": value,
        "values": [value],
        **other,
    }


def failing(kit: Kit) -> Result:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def test_a_row_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def looking(kit: Kit) -> Result:
        seen.append([row["state"] for row in read(tmp_path)])
        return {"figure": figure(2500.0), "remark": "a | b"}

    planned = [
        Row("large", failing),
        Row("fine", looking),
        Row("no number", lambda kit: {"figure": figure(float("nan"))}),
        Row("too long", looking, seconds=1000),
    ]
    list(write(tmp_path, planned).run(Kit(QUICK, CPU)))
    assert seen == [["failed", "running", "waiting", "waiting"]]
    found = read(tmp_path)
    assert [row["state"] for row in found] == ["failed", "done", "failed", "skipped"]
    assert found[0]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert re.fullmatch(r"may take 1000 s, and \d+ s are left of --limit", found[3]["error"])
    table = [line for line in (tmp_path / PAGE).read_text().splitlines() if line.startswith("| ")]
    cells = {line.split(" | ")[0].strip("| "): line for line in table}
    assert cells["fine"].startswith(
        "| fine | 2.5 k | 2.5 k | 2.5 k | 1/s | - | - | - | 0.0 | a / b |"
    )
    assert "failed: OutOfMemoryError: CUDA out of memory" in cells["large"]
    assert {cells[row.name].count(" | ") for row in planned} == {len(HEAD) - 1}


def test_an_error_that_stays_in_the_process_leaves_no_row_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sticky(*given: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, sticky)
    planned = [Row("first", lambda kit: {}), Row("second", lambda kit: {})]
    list(write(tmp_path, planned).run(Kit(QUICK, torch.device("cuda"))))
    assert [row["state"] for row in read(tmp_path)] == ["failed"] * 2


HANGING = """
import sys, time, torch
from pathlib import Path
from types import SimpleNamespace
from dfkd.lab.benchmarks.gpu.kit import Kit
from dfkd.lab.benchmarks.gpu.record import RunRecord, Row
from dfkd.lab.benchmarks.gpu.sizes import QUICK
from dfkd.storage.local import LocalStorage

def hang(*given):
    print("hangs", flush=True)
    time.sleep(600)

storage = LocalStorage(Path(sys.argv[1]))
storage.prepare()
passed = sys.argv[3] != "wrong"
rows = [Row("first", lambda kit: {"passed": passed, "remark": "fine"}, 0, check=True)]
rows += [Row("second", hang, 0), Row("third", hang, 0)]
record = RunRecord(storage, rows, "python -m x", float(sys.argv[2]), time.monotonic())
if sys.argv[3] == "stuck":
    record.storage = SimpleNamespace(put=hang)
list(record.run(Kit(QUICK, torch.device("cpu"))))
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("check", "code", "states"),
    [
        ("passed", 3, ["done", "skipped", "skipped"]),
        ("wrong", 1, ["done", "skipped", "skipped"]),
        ("stuck", 3, ["waiting"] * 3),
    ],
)
def test_the_process_ends_at_the_limit_and_finished_rows_outlive_it(
    tmp_path: Path, check: str, code: int, states: list[str]
) -> None:
    """Whatever hangs: a row, or the folder."""
    command = [sys.executable, "-c", HANGING, str(tmp_path), "6", check]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout.readline() == "hangs\n"
        assert process.wait(60) == code
        assert ("error: first: images differ" in process.stderr.read()) == (check == "wrong")
    assert [row["state"] for row in read(tmp_path)] == states
