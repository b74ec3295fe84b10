"""The manifests of the paper's data sets: its settings, planned whole, and run at full size."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.config.pipelines import PIPELINES
from dfkd.config.synthesis import Prompts, Synthesis, TeacherConfig
from dfkd.dataset.published import current
from dfkd.lab import footprint
from dfkd.lab.baselines.inverter import even_batches
from dfkd.lab.baselines.settings import BatchNorm, Cmi, DeepInversion, Dfad, Pre
from dfkd.lab.benchmarks.memory import watched
from dfkd.models.teacher import Teacher
from dfkd.operations.estimate import A100, H100, label_work
from dfkd.operations.required_weights import hub_models, needs
from dfkd.prompts.settings import Contrastive
from dfkd.storage.local import open_storage
from dfkd.synthesis.settings import Latents
from tests.helpers import jobs
from tests.helpers.http_server import keep_hub_model
from tests.helpers.tiny_models import (
    F16,
    RESNET,
    VIT,
    model_config,
    official_yaml,
    write_published,
    write_teacher,
)
from tests.helpers.tiny_pipeline import write_pipeline

FOLDER = Path(__file__).parents[2] / "manifests"
PAPER = ("pacs", "vlcs", "imageclef", "visda")
PACS = ("PACS", ("art_painting", "cartoon", "photo", "sketch"))
DATA_SETS = {
    "pacs": PACS,
    "pacs_conventional": PACS,
    "pacs_sd15": PACS,
    "pacs_turbo": PACS,
    "vlcs": ("VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007")),
    "imageclef": ("ImageCLEF-DA", ("c", "i", "p")),
    "visda": ("VisDA-2017", ("train", "validation")),
    "office_home": ("Office-Home", ("Art", "Clipart", "Product", "Real World")),
    "domainnet": (
        "DomainNet",
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    ),
}
"""Name and domain folders of the data set of each manifest."""
DIFFUSION = {"pacs_sd15": "PNDMScheduler", "pacs_turbo": "EulerDiscreteScheduler"}
"""The scheduler of each manifest with a diffusion model."""
VIT_B, RN50 = "timm/vit_base_patch32_clip_224.openai", "timm/resnet50_clip.openai"
TEACHERS = {
    "pacs_conventional": RN50,
    "pacs_turbo": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "pacs_sd15": "timm/vit_large_patch14_clip_224.openai",
}
"""The teacher on its hub, where it is not ViT-B/32."""


def read(name: str) -> Manifest:
    return Manifest.read(FOLDER / f"{name}.yaml")


def options(settings: dict[str, object]) -> list[str]:
    """The settings as words of a command line."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def write_images(root: Path, domains: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """A picture of each class in each domain, in folders named as the data sets name theirs."""
    for domain in domains:
        for number, each in enumerate(classes):
            folder = root / domain / each.title().replace(" ", "_")
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 30), (number % 256, 99, 9)).save(folder / "1.jpg")


def write_resnet(cache: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), cache / "resnet18-f37072fd.pth")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models in the published formats, under the published names."""
    folder = tmp_path_factory.mktemp("cache")
    write_published(folder, official_yaml(codes=16384, **F16))
    write_resnet(folder)
    return folder


def test_each_data_set_has_a_manifest() -> None:
    trees = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
    found = [name for name, tree in trees.items() if "classes" in tree]
    real = [name for name in found if trees[name]["teacher"]["model"] != "miniature"]
    assert sorted(real) == sorted(DATA_SETS)


@pytest.mark.parametrize("name", ["miniature", *DATA_SETS])
def test_the_students_of_a_manifest_have_a_size(name: str) -> None:
    """Every evaluation ends with it, days after the start of a run of this size."""
    student = footprint.student(read(name))
    assert student.image_size == read(name).synthesis.image_size
    assert student.parameters > 100_000


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_are_the_paper_s(name: str) -> None:
    manifest = read(name)
    assert manifest.teacher == TeacherConfig(model="ViT-B-32-quickgelu", weights="openai")
    assert manifest.synthesis == Synthesis()
    assert manifest.generator.settings.optimisation_steps == 500
    methods = ("vanilla", "mix", "random", "contrastive")
    kinds = {"contrastive": Contrastive()}
    assert manifest.prompts == Prompts(method=methods, kinds=kinds)
    student = Distillation(seeds=(0, 1, 2, 3, 4), checkpoint_epochs=10)
    assert manifest.distillation == student
    assert len(manifest.classes) == {"pacs": 7, "vlcs": 5}.get(name, 12)


def test_table_5_has_the_settings_of_table_1_and_those_of_the_publications() -> None:
    manifest, plain = read("pacs_conventional"), read("pacs")
    assert manifest.methods == (
        *("deepinversion", "dfad", "cmi", "pre"),
        *("contrastive-bn", "contrastive"),
    )
    own = manifest.synthesis.kinds
    assert own == {
        "deepinversion": DeepInversion(),
        "dfad": Dfad(),
        "cmi": Cmi(batch_size=60),
        "pre": Pre(batch_size=96),
        "bn": BatchNorm(weight=0.01),
        "latents": Latents(),
    }
    # Megabytes that an image keeps for its gradient with RN50 at 224 px, in float32; the rest of a
    # GPU with 24 GB is for weights and the largest single tensors.
    memory = {"deepinversion": 100, "dfad": 179, "cmi": 313, "pre": 212}
    for name, megabytes in memory.items():
        assert megabytes * own[name].batch_size < 21_000, name
    assert manifest.teacher == TeacherConfig(model="RN50-quickgelu", weights="openai")
    ways = {"source", "kinds", "shard_size"}
    alike = [vars(m.synthesis).items() for m in (manifest, plain)]
    assert {key for key, value in alike[0] if (key, value) not in alike[1]} == ways
    for section in ("classes", "generator", "distillation", "evaluation"):
        assert getattr(manifest, section) == getattr(plain, section)
    assert manifest.prompts.kinds["contrastive"] == plain.prompts.kinds["contrastive"]
    # Batches of statistics are full.
    part = len(manifest.classes) * manifest.synthesis.shard_size
    assert manifest.synthesis.images_per_class % manifest.synthesis.shard_size == 0
    for size in (own["deepinversion"].batch_size, own["cmi"].batch_size):
        assert {rows.stop - rows.start for rows in even_batches(part, size)} == {size}


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_every_weight_file_has_a_known_source(name: str) -> None:
    manifest = read(name)
    vqgan = "vqgan-imagenet-f16-16384"
    files, models = [f"{vqgan}.yaml", f"{vqgan}.ckpt"], {TEACHERS.get(name, VIT_B), RN50}
    if name == "pacs_sd15":
        models |= {"timm/PE-Core-L-14-336"}
    if name in DIFFUSION:
        files, models = (
            [],
            models | {PIPELINES[manifest.generator.kinds["diffusers"].weights].repository},
        )
    assert [need.artifact.file for need in needs(manifest)] == [*files, "resnet18-f37072fd.pth"]
    assert {model.id for model in hub_models(manifest)} == models


@pytest.mark.parametrize("name", DIFFUSION)
def test_with_a_diffusion_model_only_the_other_models_and_steps_differ(name: str) -> None:
    manifest, plain = read(name), read("pacs")
    assert manifest.synthesis == plain.synthesis
    for section in ("classes", "prompts", "evaluation"):
        assert getattr(manifest, section) == getattr(plain, section)
    assert manifest.candidates.classifiers == plain.candidates.classifiers
    # The models that label, where they fit into one file, and then one that is small.
    fitting = [] if name == "pacs_turbo" else [*manifest.labellers.values()]
    assert [*manifest.towers.values()] == [*fitting, *[*plain.towers.values()][1:]]
    assert manifest.distillation == dataclasses.replace(
        plain.distillation,
        labeller=manifest.distillation.labeller,
        seeds=(0,),
        warmup_epochs=20,
        epochs=40,
    )


def test_the_labels_of_pacs_sd15_cost_as_much_as_it_says() -> None:
    manifest, text = read("pacs_sd15"), (FOLDER / "pacs_sd15.yaml").read_text()
    (labeller,) = manifest.labellers.values()
    own, teacher = (label_work(each.model).flop for each in (labeller, manifest.teacher))
    small = label_work("PE-Core-B-16").flop
    assert f"{own / teacher:.1f} times" in text
    assert (f"{teacher / small:.1f}", "a fifth of the teacher" in text) == ("4.6", True)
    per_epoch = own * 4 * 7 * 3000 / 3600
    peaks = [device.flops["float32"] for device in (H100, A100)]
    most, least = ([f"{per_epoch * n / each:.0f}" for each in peaks] for n in (5 * 300, 60))
    words = " ".join(text.replace("#", " ").split())
    assert (
        f"at least {most[0]} GPU-hours at the float32 peak of an H100, {most[1]} of an A100"
        in words
    )
    assert f"60 epochs, {least[0]} and {least[1]} hours" in words


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_a_whole_run_can_be_planned(
    name: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CLIP's own tokenizer is used, which would refuse names that it cannot tell apart."""
    manifest = read(name)
    published, domains = DATA_SETS[name]
    tower = RESNET if name == "pacs_conventional" else VIT
    config = model_config(tower, quick=True, context_length=77)
    teacher = write_teacher(tmp_path / "teacher", config)
    if name in DIFFUSION:
        clip = Teacher.load(teacher, torch.device("cpu"))
        write_pipeline(cache / manifest.generator.kinds["diffusers"].weights, clip, DIFFUSION[name])
    write_images(tmp_path / "data", domains, manifest.classes)
    settings = {
        "cache": cache,
        "storage.root": tmp_path / "run",
        "candidates.towers": f"[teacher, {{model: {teacher.model}, weights: {teacher.weights}}}]",
        "teacher.model": teacher.model,
        "teacher.weights": teacher.weights,
        "evaluation.data": tmp_path / "data",
    }
    if not manifest.distillation.labelled_by_teacher:
        other = write_teacher(tmp_path / "other", model_config(VIT, quick=False, context_length=32))
        section = f"{{model: {other.model}, weights: {other.weights}}}"
        settings |= {"distillation.labeller": section, "candidates.towers": f"[teacher, {section}]"}
    job, path = jobs.load("pipeline"), str(FOLDER / f"{name}.yaml")
    assert job.main([path, *options(settings), "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    methods, classes = len(manifest.methods), len(manifest.classes)
    images = methods * classes * manifest.synthesis.images_per_class
    assert planned["synthesize"]["images"] == images
    seeds = 1 if name in DIFFUSION else 5
    assert planned["distill"]["students"] == methods * seeds
    assert planned["evaluate"]["text_only"] == seeds
    assert planned["evaluate"]["images"] == classes * len(domains)
    assert planned["evaluate"]["unscored_classes"] == []
    layout, *counts = planned["evaluate"]["notes"]
    assert layout == f"the layout is {published} as domain/class folders"
    assert all(f"{published} as published has" in line for line in counts)
    assert not (tmp_path / "run").exists()


KINDS = {
    "ViT-B-32 and 16,384 codes": ("ViT-B-32-quickgelu", VIT_B, 16384, 512),
    "RN50 and 1,024 codes": ("RN50-quickgelu", RN50, 1024, 1024),
}
"""Architecture, name on the hub, codes, dimension of an embedding."""
MOST = 8 << 30
"""Bytes that a run of two images may take, with this process and all of Ray's."""


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("kind", KINDS)
def test_two_images_at_full_size(kind: str, tmp_path: Path) -> None:
    """Made and learned from: the real architectures at 224 px, with random weights, in one step.

    The weights have the published formats and names.
    """
    model, hub, codes, dimension = KINDS[kind]
    cache = tmp_path / "cache"
    write_published(cache, official_yaml(codes=codes, width=128, latent=256, **F16))
    config: dict[str, Any] = open_clip.get_model_config(model)
    keep_hub_model(cache, hub, Path(write_teacher(tmp_path / "teacher", config).weights))
    write_resnet(cache)
    name = f"vqgan-imagenet-f16-{codes}"
    settings = {
        "cache": cache,
        "storage.root": tmp_path / "run",
        "classes": "[dog, person]",
        "teacher.model": model,
        "generator.vqgan.config": cache / f"{name}.yaml",
        "generator.vqgan.weights": cache / f"{name}.ckpt",
        "prompts.method": "contrastive",
        "prompts.contrastive.updates": 2,
        "synthesis.images_per_class": 1,
        "generator.vqgan.steps": 1,
        "synthesis.views": 2,
        "distillation.seeds": "[0]",
        "distillation.warmup_epochs": 1,
        "distillation.epochs": 1,
        "distillation.batch_size": 2,
        "cluster.workers": 1,
    }
    for job in ("synthesize", "distill"):
        with watched() as watch:
            done = jobs.run_here(job, FOLDER / "pacs.yaml", *options(settings))
        assert done.returncode == 0, done.stderr
        assert watch.summary()["tree_most"] < MOST

    home = open_storage(str(tmp_path / "run")).child("data/contrastive")
    version = current(home)
    samples = [sample for receipt in version.receipts() for sample in version.samples(receipt)]
    assert len(samples) == 2
    for sample in samples:
        assert sample.arrays["distances"].shape == (2,)
        assert sample.arrays["embedding"].shape == (dimension,)
        assert np.isfinite(sample.arrays["distances"]).all()
