"""Time of small CLIP image towers and of students for one image on one core."""

from functools import partial

import torch
from timm.utils.model import reparameterize_model

from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.evaluation.scoring import parameters
from dfkd.lab.benchmarks.measure import Call, Effort, Results, figure, median_ratio, time_in_turns
from dfkd.lab.footprint import TimedNetwork
from dfkd.models import student
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import build, build_tokenizer, read_architecture
from dfkd.utils.hardware import thread_limit

TOWERS = (
    "PE-Core-T-16-384",
    "MobileCLIP2-S0",
    "PE-Core-S-16-384",
    "RN50-quickgelu",
    "ViT-B-32-quickgelu",
)
STUDENTS = ("timm:mobilenetv3_small_100", "timm:tf_efficientnet_lite0", "resnet18", "resnet50")
"""`distillation.student` of two small ones and of the paper's two."""
PEER = "resnet18"
IMAGE_SIZE = 224
"""Width and height in pixels of a student's images; a tower has its own."""
TURNS = 3
"""Turns for each of the effort's repeats, because a call takes milliseconds."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Milliseconds of each network, with random weights, which change no time.

    Args:
        manifest: gives the number of a student's classes.

    Returns:
        `figures`, each beside a ResNet-18, and `parameters` and `image_size` by name.
    """
    classes = len(manifest.classes)
    networks = [*map(_tower, TOWERS), *(_student(name, classes) for name in STUDENTS)]

    def answer(network: TimedNetwork, pixels: torch.Tensor) -> float:
        network.answer(pixels)
        return 1.0

    calls: dict[str, Call] = {
        each.name: partial(answer, each, torch.rand(1, 3, each.image_size, each.image_size))
        for each in networks
    }
    with thread_limit(1), torch.inference_mode():
        rates = time_in_turns(calls, TURNS * effort.repeats)
    return {
        "figures": [
            figure(
                name,
                "ms",
                [1000 / rate for rate in values],
                peer=(PEER, median_ratio(values, rates[PEER])),
            )
            for name, values in rates.items()
        ],
        "parameters": {network.name: network.parameters for network in networks},
        "image_size": {network.name: network.image_size for network in networks},
    }


def _tower(name: str) -> TimedNetwork:
    """The image tower of an architecture of open_clip, as it is shipped."""
    architecture = read_architecture(name)
    model = build(architecture)
    # Branches that only the training needs are merged, as Apple advises for MobileCLIP.
    model.visual = reparameterize_model(model.get_submodule("visual").eval())
    tower = Teacher(model, build_tokenizer(architecture), name, architecture.preprocess)
    return TimedNetwork(name, parameters(tower.visual), tower.image_size, tower.encode_image)


def _student(name: str, classes: int) -> TimedNetwork:
    """A student of distances."""
    config = Distillation(student=(name,), weights=("none",), warmup_epochs=0)
    network = student.build(config, classes, IMAGE_SIZE, seed=0).eval()
    return TimedNetwork(name, parameters(network), IMAGE_SIZE, network)
