"""Figures: turns, quotients, counted operations, limits, peers, and their table."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.dataset.batch import Batch
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.labels import Ensemble
from dfkd.lab.benchmarks import prompts, reference, synthesis
from dfkd.lab.benchmarks.measure import (
    HEAD,
    QUICK,
    Call,
    figure,
    median_ratio,
    operations,
    page,
    profile,
    profile_table,
    scaled,
    table,
    time_in_turns,
    time_loop,
)
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.utils.types import Precision
from tests.helpers import small_manifest
from tests.helpers.sources import source_of, stored
from tests.helpers.tiny_models import VQGAN as SETTINGS
from tests.helpers.tiny_version import write_manifest

CPU = torch.device("cpu")


def test_calls_take_turns_and_the_first_turn_does_not_count() -> None:
    order, clock = [], [0.0]
    slow = {"a": 0.25, "b": 0.5}

    def call(name: str) -> float:
        order.append(name)
        clock[0] += slow[name] if len(order) > 2 else 8.0
        return 3.0

    calls = {name: lambda name=name: call(name) for name in slow}
    found = time_in_turns(calls, repeats=3, clock=lambda: clock[0])
    assert order == ["a", "b"] * 4
    assert found == {"a": (12.0,) * 3, "b": (6.0,) * 3}


def test_a_quotient_is_taken_turn_by_turn() -> None:
    assert median_ratio([1.0, 8.0, 3.0], [2.0, 2.0, 3.0]) == 1.0
    assert median_ratio([1.0, 8.0, 3.0], [2.0, 2.0, 3.0], factor=10.0) == 10.0


def test_operations_are_counted_backwards_too() -> None:
    left = torch.ones(4, 5, requires_grad=True)
    assert operations(lambda: left @ torch.ones(5, 6)) == 2 * 4 * 5 * 6
    assert operations(lambda: (left @ torch.ones(5, 6)).sum().backward()) == 2 * 2 * 4 * 5 * 6
    # A gradient may end at the input of a module.
    layer, inputs = torch.nn.Linear(8, 4).requires_grad_(False), torch.ones(2, 8)
    inputs.requires_grad_()
    counted = operations(lambda: torch.autograd.grad(layer(inputs).sum(), [inputs]))
    assert counted == 2 * (2 * 2 * 8 * 4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_limits_do_what_they_count(precision: Precision) -> None:
    for limit in (reference.product(CPU, precision), reference.convolution(CPU, precision)):
        assert operations(limit) == limit() > 0


def test_the_plain_loop_is_synthesis_without_any_switch(teacher: Teacher) -> None:
    """The same losses at the same step, as far as float32 goes."""
    generator = VQGAN.load(SETTINGS, CPU, "float32")
    targets = teacher.encode_text(["A cat", "A clock"])
    views = ("synthesis.views=0", "synthesis.view_noise=0")
    loop = ("generator.vqgan.steps=3", "generator.vqgan.learning_rate=0.15")
    manifest = Manifest.read("manifests/studies/vqgan.yaml", (*views, *loop))
    losses = source_of(manifest, teacher, generator).make(stored(targets), [0, 1]).losses
    assert torch.allclose(
        reference.plain_loop(teacher, generator, targets, 64, 3), losses, rtol=1e-3
    )


@pytest.mark.heavy
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_plain_distillation_is_distillation_without_any_switch(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    monkeypatch.setattr(reference, "augment", lambda pixels, names, draws: pixels)
    config = Distillation(
        weights="none",
        warmup_epochs=0,
        optimizer=optimizer,
        schedule="constant",
        learning_rate=0.002,
        finetune_factor=1.0,
        augmentation=(),
    )
    texts = teacher.encode_text(["A cat", "A clock"])
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels, embeddings = torch.zeros(4, dtype=torch.int64), torch.ones(4, 1)
    batch = Batch(pixels.mul(255).byte(), torch.ones(4, 2), labels, embeddings)
    course, label = Schedule(1, warmup=0, total=9), Ensemble([teacher], [texts]).distances
    ours = Distiller(build(config, 2, 64, seed=0), config, course, 0, label)
    losses = [float(ours.advance(batch).loss) for _ in range(3)]
    plain = reference.plain_distillation(
        build(config, 2, 64, seed=0).train(), teacher, texts, batch.pixels, config, 3
    )
    assert float(plain) == pytest.approx(losses[-1], rel=1e-2)
    assert abs(losses[-1] - losses[0]) > 0.03 * losses[0]  # so that another optimizer shows


@pytest.mark.parametrize(
    "variant",
    [{"bank": 4}, {"bank": 0}],
)
def test_plain_prompts_are_contrastive_prompts(
    teacher: Teacher, tmp_path: Path, variant: dict[str, Any]
) -> None:
    sizes = {"updates": 3, "batch_size": 6}
    manifest = Manifest.read(write_manifest(tmp_path, prompts={"contrastive": sizes | variant}))
    problem, start = prompts.example(manifest, teacher)
    config = manifest.prompts.kinds["contrastive"]
    ours, _ = contrastive.optimise(problem, start, config, np.random.default_rng(0))
    plain = reference.plain_prompts(teacher, problem, start, config, np.random.default_rng(0))
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-3)
    assert prompts.updates(manifest, teacher, plain=True)() == 3 * 6


def test_a_profile_says_where_the_time_goes() -> None:
    matrix = torch.ones(300, 300)
    calls = []

    def call() -> None:
        calls.append(None)
        (matrix @ matrix).exp()

    spent = profile(call)
    assert len(calls) == 2
    assert list(spent)[-1] == "all others"
    assert "aten::mm" in spent
    ordered = list(spent.values())[:-1]
    assert ordered == sorted(ordered, reverse=True)


def test_a_call_of_which_the_profiler_sees_nothing_has_no_profile() -> None:
    with pytest.raises(RuntimeError, match="the profiler saw no kernel"):
        profile(lambda: None)
    product = reference.product(CPU)
    found = time_loop("ours", "1/s", lambda: 1.0, {"plain": product}, "plain", ("mm", product), 1)
    assert list(found["profile"]) == ["plain"]
    assert [each["name"] for each in found["figures"]] == ["ours", "plain", "mm"]


def test_a_profile_without_any_time_has_no_shares() -> None:
    lines = list(profile_table({"empty": {"all others": 0}, "other": {"a": 2.0}, "none": {}}))
    assert lines[2:4] == ["| all others | 0.0% | 0.0% | 0.0% |", "| a | 0.0% | 100.0% | 0.0% |"]


def test_synthesis_is_timed_eager_and_compiled_if_the_manifest_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return lambda *given: calls.append("compiled") or function(*given)

    def timed(
        name: str, unit: str, ours: Call, variants: dict[str, Call], *more: Any
    ) -> dict[str, Any]:
        assert ours() > 0
        assert calls == []
        assert variants["synthesis, compiled"]() > 0
        return {}

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(synthesis, "time_loop", timed)
    sizes = {"image_size": 64, "batch_size": 2, "views": 1, "compile": True}
    synthesis.measure(small_manifest.read(tmp_path, synthesis=sizes), QUICK)
    assert calls == ["compiled"] * (synthesis.STEPS + 1)


def test_on_a_gpu_kernels_count_and_not_what_has_started_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operation of the CPU and a named block repeat the time of the kernels below them."""
    kinds: Any = torch.autograd
    cpu, gpu = kinds.DeviceType.CPU, kinds.DeviceType.CUDA
    events = [
        SimpleNamespace(
            key=key, device_type=device, is_user_annotation=named, self_device_time_total=time
        )
        for key, device, named, time in (
            ("aten::mm", cpu, False, 3e6),
            ("gemm", gpu, False, 3e6),
            ("Optimizer.step", gpu, True, 1e6),
            ("Memcpy DtoD", gpu, False, 1e6),
        )
    ]
    profiler = contextlib.nullcontext(SimpleNamespace(key_averages=lambda: events))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profiler)
    assert profile(lambda: None) == {"gemm": 3.0, "Memcpy DtoD": 1.0, "all others": 0.0}


def test_a_page_has_a_table_for_each_record() -> None:
    made = figure("stream", "images/s", [1500.0], ("bare decoding", 0.634))
    record = {
        "benchmark": "streaming",
        "command": "dfkd benchmark streaming x.yaml",
        "date": "2026-01-02",
        "machine": {"processor": "a CPU", "cpus": 2},
        "environment": {"torch": "2.8.0"},
        "results": {
            "memory": {"tree_most": 2_500_000},
            "figures": [made],
            "profile": {"stream": {"a": 3.0, "b": 1.0}, "other": {"b": 0.5, "c": 1.5}},
        },
    }
    lines = page([record, record]).splitlines()
    assert lines.count("## streaming") == 2
    assert lines[2] == (
        "`dfkd benchmark streaming x.yaml`, 2026-01-02, a CPU with 2 CPUs, torch 2.8.0, "
        "most memory of all processes 2.5 MB"
    )
    assert lines[6] == "| stream | 1.5 k | 1.5 k | 1.5 k | images/s | 63% of bare decoding | - |"
    assert lines[8:13] == [
        "| share of the time | stream | other |",
        "|---|---:|---:|",
        "| a | 75.0% | 0.0% |",
        "| b | 25.0% | 25.0% |",
        "| c | 0.0% | 75.0% |",
    ]
    widths = {line.count("|") for line in lines[4:7]}
    assert widths == {len(HEAD) + 1}


def test_a_table_has_a_line_for_each_figure() -> None:
    figures = [
        figure("stream", "images/s", [1500.0, 1000.0, 2000.0], ("bare decoding", 0.634)),
        figure("bare decoding", "images/s", [2.5e9], peer=("stream", 2.0)),
    ]
    lines = table({"figures": figures})
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "stream 1.5 k 1 k 2 k images/s 63% of bare decoding -",
        "bare decoding 2.5 G 2.5 G 2.5 G images/s - 2.00 x stream",
    ]
    assert [scaled(value) for value in (0.1234, 12.34, 999.4, 1e16)] == [
        "0.123", "12.3", "999", "10 P",
    ]  # fmt: skip


@pytest.mark.heavy
def test_a_diffusion_model_is_timed_as_a_worker_samples() -> None:
    """Guidance costs one more pass of the UNet in each step, and all else happens once."""
    settings = "classes=[cat, clock]", "synthesis.batch_size=2"
    found = {}
    for steps, guidance in ((1, 1), (2, 1), (2, 3)):
        more = f"generator.diffusers.steps={steps}", f"generator.diffusers.guidance={guidance}"
        manifest = Manifest.read("manifests/miniature.yaml", (*settings, *more))
        found[steps, guidance] = synthesis.measure(manifest, QUICK)
    flop = {each: results["flop_per_unit"] for each, results in found.items()}
    unet = flop[2, 1] - flop[1, 1]
    assert flop[2, 3] - flop[2, 1] == 2 * unet
    assert 0 < unet < flop[1, 1]
    figures = {each["name"]: each for each in found[2, 3]["figures"]}
    assert list(figures) == [
        "synthesis",
        *(f"synthesis, batch of {size}" for size in (1, 4)),
        "synthesis, float32",
        "one image a call, float32",
        "convolution, bfloat16",
    ]
    assert figures["synthesis"]["peer"] == "one image a call, float32"
    assert all(each["median"] > 0 for each in figures.values())
