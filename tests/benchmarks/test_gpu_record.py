"""The record of the GPU kit: rows that fail, targets, the limit, and what outlives the process."""

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

from dfkd.benchmarks.gpu.kit import Kit, Result
from dfkd.benchmarks.gpu.record import HEAD, JSON, PAGE, Row, RunRecord, Target
from dfkd.benchmarks.gpu.sizes import QUICK
from dfkd.storage.local import LocalStorage
from tests.helpers.jobs import ROOT

CPU = torch.device("cpu")


def write(folder: Path, planned: list[Row], limit: float = 100, **targets: float) -> RunRecord:
    """A record of rows, begun now."""
    storage = LocalStorage(folder)
    storage.prepare()
    wanted = [Target(key, key, least) for key, least in targets.items()]
    return RunRecord(storage, planned, wanted, "python -m x", limit, time.monotonic())


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
        "| fine | 2.5 k | 2.5 k | 2.5 k | 1/s | - | - | - | - | 0.0 | a / b |"
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


def test_targets_are_judged_by_the_fastest_usual_row(tmp_path: Path) -> None:
    other = {"limit": "l", "share": 0.9, "peer": "p", "ratio": 9.0}
    planned = [
        Row("slow", lambda kit: {"usual": True, "figure": figure(3.0, **other)}),
        Row("fast", lambda kit: {"usual": True, "figure": figure(4.0, limit="l", share=0.2)}),
        Row("other work", lambda kit: {"figure": figure(9.0, **other)}),
    ]
    record = write(tmp_path, planned, median=4, share=0.35, ratio=5)
    targets = json.loads((tmp_path / JSON).read_bytes())["targets"]
    assert [target["measured"] for target in targets] == [None] * 3
    list(record.run(Kit(QUICK, CPU)))
    targets = json.loads((tmp_path / JSON).read_bytes())["targets"]
    assert [(target["measured"], target["met"]) for target in targets] == [
        (4.0, True), (0.2, False), (None, False),
    ]  # fmt: skip
    lines = (tmp_path / PAGE).read_text().splitlines()
    assert {"| median | 4 | yes |", "| share | 0.2 | no |", "| ratio | - | not measured |"} < set(
        lines
    )


HANGING = """
import sys, time, torch
from pathlib import Path
from dfkd.benchmarks.gpu.kit import Kit
from dfkd.benchmarks.gpu.record import RunRecord, Row
from dfkd.benchmarks.gpu.sizes import QUICK
from dfkd.storage.local import LocalStorage

def hang(kit):
    print("hangs", flush=True)
    time.sleep(600)

storage = LocalStorage(Path(sys.argv[1]))
storage.prepare()
passed = sys.argv[3] == "passed"
rows = [Row("first", lambda kit: {"passed": passed, "remark": "fine"}, 0, check=True)]
rows += [Row("second", hang, 0), Row("third", hang, 0)]
record = RunRecord(storage, rows, [], "python -m x", float(sys.argv[2]), time.monotonic())
list(record.run(Kit(QUICK, torch.device("cpu"))))
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("check", "code"), [("passed", 3), ("wrong", 1)])
def test_finished_rows_outlive_the_process(tmp_path: Path, check: str, code: int) -> None:
    command = [sys.executable, "-c", HANGING, str(tmp_path), "2", check]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout.readline() == "hangs\n"
        assert process.wait(60) == code
        assert ("error: first: images differ" in process.stderr.read()) == (check == "wrong")
    assert [row["state"] for row in read(tmp_path)] == ["done", "skipped", "skipped"]
