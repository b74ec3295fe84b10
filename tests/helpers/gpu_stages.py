"""Take one run through its stages on an emulated CUDA device; `tests/test_gpu_rules.py` starts it.

    python -m tests.helpers.gpu_stages RUN FOLDER

prints a line for each stage, with the number of its operations on the device.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tests.helpers import emulated_cuda

emulated_cuda.install()  # first, because modules of the package keep functions of torch

import dfkd  # noqa: E402
from dfkd.cluster.making import identify  # noqa: E402
from dfkd.cluster.worker import Worker  # noqa: E402
from dfkd.config.distillation import Augmentation  # noqa: E402
from dfkd.config.manifest import Manifest  # noqa: E402
from dfkd.config.plan import PromptPart, PromptSummary, blocks, part_count, units  # noqa: E402
from dfkd.dataset.versions import begin  # noqa: E402
from dfkd.export.choice import read_candidates  # noqa: E402
from dfkd.lab.few_shot.run import few_shot  # noqa: E402
from dfkd.lab.few_shot.settings import FewShot  # noqa: E402
from dfkd.models.generators.diffusers_folder import SCHEDULERS  # noqa: E402
from dfkd.storage import layout  # noqa: E402
from dfkd.storage.local import open_storage  # noqa: E402
from tests.helpers import inversion_runs, small_manifest, tiny_pipeline  # noqa: E402
from tests.helpers.inversion_runs import METHODS, TREE  # noqa: E402
from tests.helpers.workers import own_worker  # noqa: E402

IMAGES: dict[str, Any] = {
    "images_per_class": 4, "shard_size": 4, "image_size": 64, "precision": "bfloat16",
    "views": 2, "view_noise": 0.1,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "student": "timm:test_resnet", "weights": "miniature", "epochs": 1, "warmup_epochs": 1,
    "batch_size": 4, "precision": "bfloat16",
}  # fmt: skip
SCORED: dict[str, Any] = {
    "evaluation": {"models": ["teacher", "text-only", "student"], "domains": "mosaic"},
    "candidates": {"classifiers": ["zero-shot", "text-only"], "styles": 2},
}
TRAINED = FewShot(domains=("mosaic",), shots=(1,), seeds=(0,), epochs=1)
RUNS: dict[str, dict[str, Any]] = {
    "diffusion": {
        "generator": {
            "kind": "diffusers",
            "diffusers": {"weights": "miniature", "steps": 2, "guidance": 2.0, "refine_steps": 1},
        },
        "prompts": {
            "method": ["vanilla", "mix", "random", "contrastive"],
            "styles": "miniature",
            "contrastive": {"updates": 2},
        },
        "synthesis": IMAGES,
        "distillation": {
            **STUDENT,
            "target": "both",
            "augmentation": list(get_args(Augmentation)),
        },
        **SCORED,
    },
    "vqgan": {
        "generator": small_manifest.vqgan(steps=2, learning_rate=0.1),
        "prompts": {
            "method": ["mix", "contrastive"],
            "styles": "miniature",
            "contrastive": {"updates": 2},
        },
        "synthesis": {**IMAGES, "source": ["latents", "bn"], "bn": {"weight": 0.1}},
        "distillation": {**STUDENT, "optimizer": "adamw", "texts": "styles"},
        **SCORED,
        "evaluation": {**SCORED["evaluation"], "models": ["teacher", "student"]},
    },
    **{
        method: {
            "prompts": TREE["prompts"],
            "synthesis": {**TREE["synthesis"], "source": method},
            "distillation": {**STUDENT, "augmentation": []},
        }
        for method in METHODS
    },
}


def synthesize(manifest: Manifest) -> None:
    """The work of the actors and of the driver, in this process."""
    for method in manifest.methods:
        single = manifest.with_method(method)
        home = open_storage(single.storage.root).child(layout.data(method))
        version = begin(home, identify(single))
        worker = own_worker(single, version, Worker)
        for part in range(part_count(single)):
            worker.make_prompts(PromptPart(part))
        worker.make_prompts(PromptSummary())
        for unit in units(single, ()):
            worker.make_shards(unit)
        version.publish(blocks(single), {})


def stage(name: str, work: Callable[[], Any]) -> None:
    """Do a stage and print how much of it was on the device."""
    before = emulated_cuda.Operations.count
    work()
    print(f"{name}: {emulated_cuda.Operations.count - before} operations", flush=True)


def sample_with_each_scheduler(folder: Path) -> None:
    """Synthesise with tiny diffusion models, one for each scheduler of diffusers that is read."""
    teacher = tiny_pipeline.tiny_teacher(folder)
    for name in SCHEDULERS:
        pipeline = tiny_pipeline.write_pipeline(folder / name, teacher, name)
        root = f"storage.root={folder / name / 'run'}"
        manifest = tiny_pipeline.read_manifest(folder, pipeline, root, "prompts.method=mix")
        stage(name, partial(synthesize, manifest))


def main(name: str, folder: Path) -> None:
    """Do the stages of a run under a folder."""
    if name == "schedulers":
        sample_with_each_scheduler(folder)
        return
    keys = {"classes": list(inversion_runs.CLASSES), "storage": {"root": str(folder / "run")}}
    manifest = small_manifest.read(folder, **{**keys, **RUNS[name]})
    stage("synthesize", lambda: synthesize(manifest))
    stage("distill", lambda: dfkd.distill(manifest))
    if "evaluation" in RUNS[name]:
        stage("evaluate", lambda: dfkd.evaluate(manifest))
        stage("export_candidates", lambda: dfkd.export_candidates(manifest))
        for each in read_candidates(open_storage(manifest.storage.root)).candidates:
            assert each.gpu_ms, each.name
        stage("few_shot", lambda: few_shot(manifest, TRAINED))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)
