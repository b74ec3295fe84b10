"""What a run costs at least: counted without computing, and the figures that pages give."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.config.manifest import Manifest
from dfkd.lab.benchmarks.measure import operations
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.operations import estimate
from dfkd.operations.estimate import A100, DEVICES, H100, L4, Work, counted, device_of
from dfkd.prompts.settings import Contrastive
from tests.helpers import jobs, published_sizes, small_manifest
from tests.helpers.published_sizes import F16_16384, SD15, TURBO, VIT, Sampler
from tests.helpers.sources import source_of, stored

PAGES = Path(__file__).parents[2]


def test_products_and_what_moves_are_counted_by_hand() -> None:
    weights, bias = torch.ones(3, 5), torch.ones(5)

    def call(images: int) -> None:
        rows = torch.ones(images, 4, 3)
        made = rows.view(-1, 3) @ weights  # 2 x 4 x 3 x 5 FLOP an image
        made.add_(bias.expand_as(made)).t()

    work = counted(call)
    # Of each image 4 x 3 numbers are made and read, and 4 x 5 written, read and written.
    assert (work.flop, work.products, work.others) == (120, 12 + 20, 12 + 40)


def test_kernels_follow_each_other_unless_they_are_compiled() -> None:
    work = Work(flop=989e12, products=1.675e12 / 2, others=3 * 1.675e12, precision="bfloat16")
    assert work.seconds(H100) == pytest.approx(1 + 3)
    assert dataclasses.replace(work, compiled=True).seconds(H100) == pytest.approx(1)
    bound_by_memory = dataclasses.replace(work, products=4 * 1.675e12, compiled=True)
    assert bound_by_memory.seconds(H100) == pytest.approx(4)
    assert (work * 3).seconds(H100) == pytest.approx(12)
    single = dataclasses.replace(work, precision="float32")
    assert single.seconds(H100) == pytest.approx(989 / 67 + 6)


@pytest.mark.parametrize(
    ("gpu", "device", "reason"),
    [
        ("NVIDIA H100 80GB HBM3", H100, ""),
        ("NVIDIA A100-SXM4-80GB", A100, ""),
        ("NVIDIA L4", L4, ""),
        ("NVIDIA L40S", H100, ", as those of NVIDIA L40S are unknown"),
        ("", H100, ", as no GPU is here"),
    ],
)
def test_an_unknown_gpu_gets_the_bound_of_an_h100(
    gpu: str, device: estimate.Device, reason: str
) -> None:
    assert device_of(gpu) == (device, reason)


@pytest.mark.heavy
def test_steps_are_counted_as_if_they_had_been_done(tmp_path: Path) -> None:
    settings = ("synthesis.image_size=32", "generator.vqgan.steps=7", "synthesis.views=2")
    file = PAGES / "manifests/studies/vqgan.yaml"
    manifest = Manifest.read(file, settings)
    teacher, generator = published_sizes.teacher("miniature"), published_sizes.generator()

    def done(steps: int) -> int:
        own = Manifest.read(file, (*settings, f"generator.vqgan.steps={steps}"))
        prompts = stored(teacher.encode_text(["A dog", "A cat", "A tree"]))
        return operations(lambda: source_of(own, teacher, generator).make(prompts, range(3)))

    step, label = estimate.images_work(manifest, teacher, generator)
    assert step.flop == pytest.approx(7 * (done(3) - done(2)) / 3, rel=1e-3)
    assert label.flop > 0


@pytest.mark.heavy
def test_a_plan_tells_a_bound(tmp_path: Path) -> None:
    """It grows with what the manifest asks for."""
    job, costs = jobs.load("pipeline"), []
    untrained = ("distillation.weights=none", "distillation.warmup_epochs=0")
    for settings in ([], ["synthesis.images_per_class=4000", "distillation.seeds=[0, 1]"]):
        manifest = small_manifest.read(tmp_path, *untrained, *settings)
        planned = job.plan(manifest, None)
        costs.append([planned[stage]["cost"]["tflop"] for stage in ("synthesize", "distill")])
        assert planned["distill"]["cost"]["bound_of"].startswith("H100 at its peaks")
    assert all(0 < few < many for few, many in zip(*costs, strict=True))


@pytest.mark.heavy
def test_other_students_are_counted_for_one_method(tmp_path: Path) -> None:
    """The first is trained on the images of each method, the others on those of the last."""

    def planned(*students: str, methods: str = "mix") -> dict[str, Any]:
        settings = [
            f"distillation.student=[{', '.join(students)}]", f"prompts.method=[{methods}]",
            "distillation.seeds=[0, 1]", "distillation.weights=none",
            "distillation.warmup_epochs=0",
        ]  # fmt: skip
        found = jobs.load("distill").plan(small_manifest.read(tmp_path, *settings), None)
        return found | found["cost"]

    first, other = planned("resnet18"), planned("resnet34")
    both = planned("resnet18", "resnet34", methods="vanilla, mix")
    assert [each["students"] for each in (first, other, both)] == [2, 2, 6]
    assert both["tflop"] == pytest.approx(2 * first["tflop"] + other["tflop"], rel=0.01)
    seen = [each["images_seen"] for each in (first, other, both)]
    assert seen[2] == 2 * seen[0] + seen[1]


def test_methods_without_prompts_are_named_and_not_counted() -> None:
    manifest = Manifest.read(PAGES / "manifests/pacs_conventional.yaml", ("synthesis.source=cmi",))
    found = estimate.synthesis(manifest, published_sizes.teacher("miniature"), None)
    assert (found["tflop"], found["without"]) == (0, ["cmi"])


NAMES = tuple(device.name for device in DEVICES)
FLAGS = ("synthesis.precision=bfloat16", "distillation.precision=bfloat16")
"""Those with which cluster/README.md starts the paper's experiments."""


@pytest.fixture(scope="module")
def vit() -> Teacher:
    """The paper's teacher, with random weights."""
    return published_sizes.teacher(VIT)


def read(name: str, *settings: str) -> Manifest:
    return Manifest.read(PAGES / f"manifests/{name}.yaml", (*FLAGS, *settings))


@functools.cache
def image_of_a_vqgan(vit: Teacher, *settings: str) -> list[Work]:
    """The work of an image of pacs.yaml."""
    generator = published_sizes.generator(F16_16384)
    return estimate.images_work(read("pacs", *settings), vit, generator)


def sampled_image(vit: Teacher, name: str, sampler: Sampler) -> list[Work]:
    """The work of an image of a diffusion model."""
    import diffusers

    with estimate.NO_DATA:
        generator = published_sizes.diffusion(sampler)
    generator.scheduler = getattr(diffusers, sampler.scheduler)(**sampler.schedule)
    return estimate.images_work(read(name), vit, generator)


def tflop(works: list[Work]) -> float:
    return sum(work.flop for work in works) / 1e12


def row(text: str, works: list[Work], times: float, unit: float = 3600) -> str:
    """A row of a table: the least time on each device in a unit of seconds."""
    spent = [times * sum(work.seconds(device) for work in works) / unit for device in DEVICES]
    cells = [f"{each:,.0f}" if each >= 10 else f"{each:.2g}" for each in spent]
    return f"| {text} | {' | '.join(cells)} |"


def compiled(works: list[Work]) -> list[Work]:
    """With compiled steps; labels are not compiled."""
    return [dataclasses.replace(work, compiled=work.precision == "bfloat16") for work in works]


def test_the_pages_give_the_bounds_of_the_papers_experiments(vit: Teacher) -> None:
    page = (PAGES / "cluster/README.md").read_text()
    image = image_of_a_vqgan(vit)
    prompts = estimate.prompts_work(read("pacs"), vit, Contrastive())
    contrastive = [work * 0.25 for work in prompts]  # of one method in four
    config = dataclasses.replace(read("pacs").distillation, weights="none", warmup_epochs=0)
    small = estimate.student_work(read("pacs"), build(config, 7, 224, 0), 300 * 164, 150 * 164)
    sd, turbo = (
        sampled_image(vit, name, sampler)
        for name, sampler in (("pacs_sd15", SD15), ("pacs_turbo", TURBO))
    )
    head = f"| at least | {' | '.join(NAMES)} |"
    rows = [
        row("synthesis, not compiled, GPU-hours", image + contrastive, 84_000),
        row("synthesis, compiled, GPU-hours", compiled(image) + contrastive, 84_000),
        row("a student, minutes", small, 1, unit=60),
        row("of which labels in float32", small[-1:], 1, unit=60),
        row("20 students, GPU-hours", small, 20),
        row("the images by Stable Diffusion 1.5, GPU-hours", sd[:-1], 84_000),
        row("the images by SD-Turbo, GPU-hours", turbo[:-1], 84_000),
    ]
    assert [line for line in (head, *rows) if line not in page] == []
    # What the pages tell of an image.
    assert [f"{tflop(works):.2g}" for works in (sd[:-1], turbo[:-1])] == ["36", "3.3"]
    assert f"{tflop(image):.0f}" == "266"
    assert f"{2 * image[0].others / 1e12:.1f} TB" == "2.3 TB"


def test_scale_gives_the_bounds_of_three_million_images(vit: Teacher) -> None:
    page = (PAGES / "manifests/benchmarks/scale.md").read_text()
    one, eight = (image_of_a_vqgan(vit, f"synthesis.views={views}") for views in (1, 8))
    rows = [
        f"| bfloat16 | {' | '.join(NAMES)} |",
        row("one view, not compiled", one, 3e6),
        row("one view, compiled", compiled(one), 3e6),
        row("eight views, not compiled", eight, 3e6),
        row("eight views, compiled", compiled(eight), 3e6),
    ]
    assert [line for line in rows if line not in page] == []
    assert f"{tflop(one):.0f}" == "203"  # what the page tells of 500 steps with one view


def test_manifests_give_the_bound_in_float32(vit: Teacher) -> None:
    """84,000 images of pacs.yaml as it stands."""
    single = [dataclasses.replace(work, precision="float32") for work in image_of_a_vqgan(vit)]
    hours = 84_000 * sum(work.seconds(H100) for work in single) / 3600
    assert (round(hours), round(tflop(single))) == (124, 266)
