"""The kit for a GPU: that it runs where little is installed, its rows and its checks."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.lab.benchmarks.gpu import checks, rows, synthesis
from dfkd.lab.benchmarks.gpu.__main__ import main
from dfkd.lab.benchmarks.gpu.kit import Kit
from dfkd.lab.benchmarks.gpu.record import JSON, PAGE, Row
from dfkd.lab.benchmarks.gpu.sizes import F16_16384, FULL, QUICK
from dfkd.models.generators.vqgan import VQGAN, Network
from dfkd.models.teacher_architecture import read_architecture
from dfkd.synthesis.request import Synthesised
from tests.helpers.jobs import ROOT, environment
from tests.repository import gpu_wheels

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.heavy
def test_the_kit_runs_with_the_packages_of_a_bare_machine_and_the_wheels(tmp_path: Path) -> None:
    """Without `-S` Python would see this environment's packages too."""
    packages, out = tmp_path / "packages", tmp_path / "out"
    packages.mkdir()
    gpu_wheels.site(
        packages, {*gpu_wheels.with_requirements(gpu_wheels.IMAGE), *gpu_wheels.listed()}
    )
    assert not (packages / "ray").exists()
    paths = {"PYTHONPATH": f"{packages}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-m", "dfkd.lab.benchmarks.gpu", "--quick", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment() | paths)
    assert run.returncode == 0, run.stderr
    record = json.loads((out / JSON).read_bytes())
    states = {row["name"]: row["state"] for row in record["rows"]}
    assert set(states.values()) == {"done"}, record["rows"]
    planned = rows.all_rows(QUICK, torch.cuda.is_available())
    assert list(states) == [row.name for row in planned]
    judged = [row["passed"] for row in record["rows"] if "passed" in row]
    assert judged == [True] * 5
    loop = next(row for row in record["rows"] if row["name"] == "miniature, bfloat16, batch of 2")
    assert loop["step_flop"] > 1e9
    assert loop["figure"]["share"] > 0
    assert loop["figure"]["ratio"] > 0
    sampled = [row for row in record["rows"] if row["name"].startswith("tiny diffusion")]
    assert [row["batch"] for row in sampled] == [1, 1, 2]
    assert len({row["image_flop"] for row in sampled}) == 1  # whatever batch and precision
    assert all(row["figure"]["share"] > 0 for row in sampled)
    assert {row["figure"]["peer"] for row in sampled} == {"float32, batch of 1"}
    assert sampled[0]["figure"]["ratio"] == 1
    lines = (out / PAGE).read_text().splitlines()
    for name in states:
        assert sum(line.startswith(f"| {name} |") for line in lines) == 1, name
        assert sum(line.startswith(f"{name}  ") for line in run.stdout.splitlines()) == 1, name
    assert run.stdout.splitlines()[-1] == f"wrote {out / JSON}"
    assert any(line.startswith("| share of the time | profile, eager") for line in lines)


def test_the_real_architectures_are_the_published_ones() -> None:
    assert all(read_architecture(name).quick_gelu for name in FULL.teachers)
    with torch.device("meta"):
        network = Network(F16_16384)
    assert network.get_parameter("quantize.embedding.weight").shape == (16384, 256)
    assert network.downsampling == 16
    assert network.decoder.conv_in.weight.shape == (512, 256, 3, 3)
    assert network.decoder.conv_out.weight.shape == (3, 128, 3, 3)
    assert len(network.decoder.up[4].attn) == 3  # at 16 x 16 cells, and nowhere else
    assert sum(len(level.attn) for level in network.decoder.up) == 3


def test_rows_have_names_of_their_own_and_the_compiled_ones_come_after_eager_ones() -> None:
    for sizes in (QUICK, FULL):
        planned = rows.all_rows(sizes, gpu=True)
        names = [row.name for row in planned]
        assert len(set(names)) == len(names)
    compiled = [row.name for row in planned if row.seconds >= rows.COMPILATION]
    first = names.index(compiled[0])
    assert names.index("ViT-B-32-quickgelu, bfloat16, batch of 64") < first
    assert first < names.index("resnet50, bfloat16")  # late rows may find no time
    assert len(compiled) == 4
    on_a_cpu = rows.all_rows(FULL, gpu=False)
    assert not [row.name for row in on_a_cpu if "compiled" in row.name]


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for limit in ("nan", "inf", "-1", "soon"):
        with pytest.raises(SystemExit) as stop:
            main(["--out", str(tmp_path), "--limit", limit])
        assert stop.value.code == 2
        assert "--limit" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "file" / "folder")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out: must be a folder that can be written to, got ")
    assert error.count("\n") == 1


def broken(kit: Kit) -> Any:
    raise RuntimeError("an illegal memory access")


FINE = Row("fine", lambda kit: {})


@pytest.mark.parametrize(
    ("planned", "code", "told"),
    [
        (
            [Row("company", lambda kit: {"passed": True, "remark": "r"})],
            0,
            "company  0.0  passed: r",
        ),
        (
            [Row("company", lambda kit: {"passed": False, "remark": "r"})],
            1,
            "company: images differ more than they may",
        ),
        ([FINE, Row("a time", broken)], 0, ""),
        ([FINE, Row("images", broken, check=True)], 1, ""),
        ([Row("a time", broken)], 1, ""),
        ([Row("long", lambda kit: {"remark": "r"}, seconds=1000)], 3, ""),
    ],
    ids=["passed", "not passed", "a time fails", "a check fails", "all fail", "partial"],
)
def test_the_exit_code_says_whether_checks_are_passed_and_rows_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    planned: list[Row],
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr(rows, "all_rows", lambda sizes, gpu: planned)
    assert main(["--quick", "--out", str(tmp_path), "--limit", "500"]) == code
    printed = capsys.readouterr()
    assert told in printed.out + printed.err
    assert ("NOT PASSED" in printed.out) == ("images differ" in told)


def test_without_a_gpu_only_the_quick_kit_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "all_rows", lambda sizes, gpu: [FINE])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == "error: torch sees no GPU; check the driver, or give --quick\n"
    assert not (tmp_path / JSON).exists()
    assert main(["--quick", "--out", str(tmp_path)]) == 0


def test_images_are_compared_by_pixels_and_by_distances() -> None:
    def made(levels: int, distance: float) -> Synthesised:
        pixels = torch.full((1, 2, 2, 3), 100 + levels, dtype=torch.uint8)
        return Synthesised(pixels, torch.tensor([distance]), torch.ones(1), torch.zeros(1) > 0)

    for levels, distance, passed in ((2, 0.51, True), (4, 0.51, False), (2, 0.55, False)):
        found = checks._within(made(0, 0.5), made(levels, distance), 3, 0.02)
        assert found["passed"] == passed
    assert f"{4:.3f} levels (< 3)" in checks._within(made(0, 0.5), made(4, 0.5), 3, 0.02)["remark"]


def test_a_step_is_timed_without_what_comes_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """7 s of preparation with the first pass, 0.5 s a step, 2 s for the final images."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    kit = Kit(dataclasses.replace(QUICK, windows=3), CPU)

    class Loop:
        steps = 0

        def __call__(self, targets: Any, seeds: Any, on_step: Callable[..., None]) -> Synthesised:
            clock[0] += 7
            for step in range(self.steps):
                clock[0] += 0.5 * (step > 0)
                on_step(step, None)
            clock[0] += 2
            return Synthesised(targets, targets, targets, torch.tensor([False]))

    steps, rest = synthesis._step_seconds(kit, Loop(), torch.ones(1))
    assert steps == [0.5] * 3
    assert rest == 9.0


@pytest.mark.heavy
def test_a_compiled_row_times_and_profiles_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[..., Any]] = []
    monkeypatch.setattr(torch, "compile", lambda loop, **options: made.append(loop) or loop)
    monkeypatch.setattr(synthesis, "_cost", lambda kit, variant: 1.0)
    kit = Kit(dataclasses.replace(QUICK, windows=1, window_steps=1), CPU)
    row = rows._compiled_fastest("miniature")
    with pytest.raises(RuntimeError, match="no eager row of this teacher"):
        row.measure(kit)
    kit.fastest = {"miniature": (9.0, 1)}
    found = row.measure(kit)
    assert len(made) == 1
    assert found["figure"]["median"] > 0
    assert found["profile"]
    monkeypatch.setattr(synthesis, "profile", broken)
    assert row.measure(kit).keys() == found.keys() - {"profile", "remark"}


@pytest.mark.heavy
def test_variants_share_weights_and_differ_in_what_they_say() -> None:
    kit = Kit(QUICK, CPU)
    name = QUICK.teachers[0]
    loops = [
        synthesis.Variant(name, 1, "float32", 0, channels_last=False).synthesiser(kit),
        synthesis.Variant(name, 1, "float32").synthesiser(kit),
        synthesis.Variant(name, 1).synthesiser(kit),
    ]
    kernels = []
    for loop in loops:
        assert isinstance(loop.generator, VQGAN)
        kernels.append(loop.generator.network.decoder.conv_in.weight)
    assert kernels[0].is_contiguous()
    assert not kernels[1].is_contiguous()
    assert kernels[1] is kernels[2]
    assert torch.equal(kernels[0], kernels[1])
    assert [loop.config.views for loop in loops] == [0, 8, 8]
    assert synthesis.Variant(name, 1).usual
    assert not synthesis.Variant(name, 1, "float32").usual
    assert synthesis.Variant(name, 1, compile=True).usual
