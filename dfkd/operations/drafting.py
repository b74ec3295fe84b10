"""A first manifest from class names alone, with comments for the person who will change it.

Two worlds: the bundled miniature models, which draw 70 things as icons on any machine, and Stable
Diffusion 1.5 with CLIP's ViT-L/14, which make photographs of anything on a GPU.
"""

import difflib
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dfkd.config.manifest import Manifest
from dfkd.config.paths import CACHE, MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.errors import ManifestError
from dfkd.models.generators.settings import bundled_names
from dfkd.models.weights.artifacts import HUB_BYTES
from dfkd.operations.senses import SENSES
from dfkd.utils.progress import say
from dfkd.utils.yaml import check, dump

DEVICES = Path("/dev")
"""Where the drivers of GPUs make devices: NVIDIA's, Windows' and AMD's."""
SD15 = "stable-diffusion-v1-5"
DRAWN, SAMPLED = 96, 300
"""Images of a class in the miniature, and with Stable Diffusion."""
WARMUP, EPOCHS, BATCH = 20, 40, 128
"""The training of a student with Stable Diffusion's images."""
SIZES = {
    "Stable Diffusion 1.5 (draws; CreativeML Open RAIL-M)": sum(PIPELINES[SD15].bytes.values()),
    "CLIP ViT-L/14 of OpenAI (judges; MIT)": HUB_BYTES["timm/vit_large_patch14_clip_224.openai"],
    "ResNet-18 of torchvision (the student's start; BSD-3-Clause)": HUB_BYTES[
        "resnet18-f37072fd.pth"
    ],
}
"""Bytes of what the manifest with Stable Diffusion fetches."""

IMAGE_WORK = {
    "sampling": (33.74e12, 21.70e9, 33.05e9),
    "decoding": (2.515e12, 1.228e9, 2.934e9),
    "label": (0.1620e12, 0.1775e9, 0.4193e9),
    "prompt": (0.2730e12, 0.3935e9, 0.7751e9),
}
STUDENT_WORK = {
    "warmup": (3.627e9, 4.667e6, 13.82e6),
    "training": (10.65e9, 11.37e6, 66.55e6),
}
"""What an image costs once with Stable Diffusion 1.5 and ViT-L/14, and in an epoch of a ResNet-18:
the numbers of `estimate.Work`. They stand here, because the package knows these networks only from
files that have not been fetched yet. A test counts them again."""
FLOAT32 = ("label", "prompt")
"""The parts that are not computed in bfloat16."""


def check_names(name: str, classes: Sequence[str]) -> None:
    """Refuse what no manifest takes as the name of a run or as classes.

    Raises:
        ManifestError: naming `name` or `classes`.
    """
    miniature = {"model": MINIATURE, "weights": MINIATURE}
    generator = {"kind": "diffusers", "diffusers": {"weights": MINIATURE}}
    tree = {"name": name, "classes": list(classes), "storage": {"root": f"runs/{name}"}}
    check(Manifest, tree | {"teacher": miniature, "generator": generator})
    # The run itself would refuse these when it has loaded its teacher, whose tokens have one case.
    seen: dict[str, str] = {}
    for each in classes:
        read = " ".join(each.casefold().split())
        if read in seen:
            rule = f"reads to the teacher exactly like {seen[read]!r}"
            raise ManifestError("classes", rule, each, "rename one of the two")
        seen[read] = each


def find_gpu() -> str:
    """The name of the GPU that torch would use; empty without one."""
    # Torch takes seconds to import, so it is asked only where a driver has made a device.
    if not any(any(DEVICES.glob(each)) for each in ("nvidia[0-9]*", "dxg", "kfd")):
        return ""
    say("asking torch for the GPU")
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def draft(name: str, classes: Sequence[str], gpu: str, file: str) -> tuple[str, list[str]]:
    """A manifest for what is there, and what its reader should know at once.

    Args:
        name, classes: as `check_names` has passed them.
        gpu: the name of the GPU; empty without one.
        file: how a command names the manifest.

    Returns:
        The text of the manifest, and lines to print.
    """
    known = bundled_names()
    unknown = [each for each in classes if each.lower() not in known]
    if gpu or unknown:
        return photographs(name, classes, gpu, file, unknown)
    return drawings(name, classes, file)


def drawings(name: str, classes: Sequence[str], file: str) -> tuple[str, list[str]]:
    """The manifest of the miniature models."""
    images = DRAWN * len(classes)
    # The demo's 2,304 images and two students take three to six minutes on two cores.
    least, most = round(1 + images / 1152), math.ceil(2 + images / 576)
    time = f"about {least} to {most} minutes on two cores"
    text = f"""\
# {len(classes)} things to tell apart, from their names alone. Written by `dfkd init`; change it.
#
#   dfkd audit {file}                  makes a few images, and says whether to go on
#   dfkd pipeline {file} --dry-run     checks all of this, and prints the plan
#   dfkd pipeline {file}               makes images, a student and a report
#   dfkd status {file} --watch         in a second terminal: how far it is
#
# The models are the small ones inside the package, which need no GPU and no download. They draw
# icons of 64 x 64 pixels and have never seen a photograph, so this shows the whole way, and its
# student knows drawings only. {images} images take {time}.

# The name in reports.
{dump({"name": name})}
# What the student tells apart, two or more; the plain text of the first is "A {classes[0]}".
# The models know {len(bundled_names())} names, which stand at the end of this file.
{dump({"classes": list(classes)})}
# Where results go, and a stopped run goes on: a folder, or s3://, az:// or gs://bucket/prefix.
{dump({"storage": {"root": f"runs/{name}"}})}
# The teacher looks at an image and says how near it is to each name. A student learns just this.
teacher:
  model: miniature
  weights: miniature

# The generator makes images from texts.
generator:
  kind: diffusers
  diffusers:
    weights: miniature

# The texts: each image gets a style of its own, so that the student meets many looks of a thing.
# `method: [vanilla, contrastive]` compares with plain texts, at twice the time.
prompts:
  method: contrastive
  styles: miniature

# How many images; the time grows with them.
synthesis:
  images_per_class: {DRAWN}
  image_size: 64
  shard_size: 12
  batch_size: 12

# The student: a small ResNet whose weights come from drawings too, and how long it learns.
distillation:
  student: timm:test_resnet
  weights: miniature
  warmup_epochs: 0
  epochs: 40
  batch_size: 48
  optimizer: adamw
  learning_rate: 0.006
  finetune_factor: 1.0
  augmentation: [flip, crop, affine]

# What else could be shipped: the teacher's own image tower with the texts of the classes folded
# in, or with a classifier that learns from texts alone. The report says which of all to ship.
candidates:
  towers: [teacher]
  classifiers: [zero-shot, text-only]
  styles: 10

# The test: the package has labelled drawings of these classes. Your own: a folder, domain/class/*;
# `none` if there are no labelled images.
evaluation:
  data: bundled

{_comment(f"The names that the models know: {', '.join(bundled_names())}.")}"""
    lines = [
        "torch finds no GPU here, and the bundled models know all these names",
        "they draw icons, not photographs",
        f"{images} images take {time}",
        "next:",
        f"  dfkd audit {file}",
        f"  dfkd pipeline {file} --dry-run",
        f"  dfkd pipeline {file}",
    ]
    return text, lines


def photographs(
    name: str, classes: Sequence[str], gpu: str, file: str, unknown: Sequence[str]
) -> tuple[str, list[str]]:
    """The manifest of Stable Diffusion."""
    images = SAMPLED * len(classes)
    time = f"{images} images and a student take {_least(images, gpu)}"
    senses = _senses(classes)
    total = f"{sum(SIZES.values()) / 1e9:.1f} GB"
    sizes = [f"  {size:>13,} bytes  {what}" for what, size in SIZES.items()]
    fetched = "\n".join(f"# {line}" for line in sizes)
    noted = "".join(map(_comment, senses))
    text = f"""\
# {len(classes)} things to tell apart, from their names alone. Written by `dfkd init`; change it.
#
#   dfkd fetch {file}                  once: {total} of published weights
#   dfkd audit {file}                  makes a few images, and says whether to go on
#   dfkd pipeline {file} --dry-run     checks all of this, and prints the plan
#   dfkd pipeline {file}               makes images, a student and its export
#   dfkd status {file} --watch         in a second terminal: how far it is
#
# It needs a GPU, and has never been run with these weights: look at a few images first, with
# `dfkd audit`.
#
{_comment(f"{time}. That is a bound from data sheets; a real run takes longer.")}#
# What is fetched, into {CACHE} (key `cache`):
{fetched}

# The name in reports.
{dump({"name": name})}
# What the student tells apart, two or more; the plain text of the first is "A {classes[0]}".
# Any words will do; say a word more where a name has two meanings. To keep the name as the label:
# `- {{name: crane, prompt: "crane, a wading bird"}}`
{noted}{dump({"classes": list(classes)})}
# Where results go, and a stopped run goes on: a folder, or s3://, az:// or gs://bucket/prefix.
{dump({"storage": {"root": f"runs/{name}"}})}
# The teacher looks at an image and says how near it is to each name. A student learns just this,
# unless another model labels the images (below).
# Stable Diffusion 1.5 reads its texts with the same CLIP, so change the two together.
teacher:
  model: ViT-L-14-quickgelu
  weights: openai

# The generator makes images from texts, in 20 steps each. A folder of your own model works too.
generator:
  kind: diffusers
  diffusers:
    weights: {SD15}

# The texts: each image gets a style of its own, so that the student meets many looks of a thing.
# `method: [vanilla, contrastive]` compares with plain texts, at twice the time.
prompts:
  method: contrastive
  styles: paper

# How many images; the time grows with them. `batch_size: 0` makes as many at once as fit.
synthesis:
  images_per_class: {SAMPLED}
  batch_size: 0
  precision: bfloat16

# The student, and how long it learns: first its last layer alone, then all of it.
# A smaller one: `student: timm:mobilenetv3_small_100` with `weights: pretrained`.
# A stronger model than the teacher may say what the images show, which takes longer:
# `labeller: {{model: PE-Core-L-14-336, weights: meta}}`, of 2.7 GB
distillation:
  student: resnet18
  weights: IMAGENET1K_V1
  warmup_epochs: {WARMUP}
  epochs: {EPOCHS}
  batch_size: {BATCH}
  precision: bfloat16

# What else could be shipped: the image tower of the model that labels, which is large, and others
# by their names in open_clip. A small one, of 25 MB, which `dfkd fetch` downloads too:
# `towers: [labeller, {{model: PE-Core-T-16-384, weights: meta}}]`
candidates:
  towers: [labeller]
  classifiers: [zero-shot, text-only]

# The test: with labelled images, a folder domain/class/*, candidates are scored by accuracy. With
# `none` they are compared on synthesised images, by how often they answer as the teacher does.
evaluation:
  data: none
"""
    lines = [
        *([f"Stable Diffusion 1.5 makes photographs on {gpu}"] if gpu else _no_gpu(unknown)),
        *(f"note: {each}" for each in senses),
        f"to fetch, {total} in all, into {CACHE}:",
        *sizes,
        time,
        "next:",
        f"  dfkd fetch {file}",
        f"  dfkd audit {file}",
        f"  dfkd pipeline {file} --dry-run",
        f"  dfkd pipeline {file}",
    ]
    return text, lines


def _no_gpu(unknown: Sequence[str]) -> list[str]:
    """What to do about names that the bundled models do not know, on a machine without a GPU."""
    known, named = bundled_names(), []
    for each in unknown:
        near = difflib.get_close_matches(each.lower(), known, n=1, cutoff=0.85)
        named.append(f"{each!r} (but {near[0]!r})" if near else repr(each))
    told = f"The bundled models, which need none, do not know {', '.join(named)}. "
    return [
        "this manifest needs a GPU, and torch finds none here",
        *textwrap.wrap(f"{told}They know {', '.join(known)}.", 98, break_long_words=False),
    ]


def _senses(classes: Sequence[str]) -> list[str]:
    """A question about each class that is known to have two meanings."""
    asked = {name: SENSES[name.lower()] for name in classes if name.lower() in SENSES}
    return [
        f"{name}: {one!r} or {other!r}? write the one that you mean"
        for name, (one, other) in asked.items()
    ]


def _least(images: int, gpu: str) -> str:
    """The least time on a GPU, or without one on each GPU whose peaks are known."""
    say("computing how long a run takes")
    from dfkd.operations import estimate

    def spent(device: estimate.Device) -> str:
        cost = {
            part: estimate.Work(*work, "float32" if part in FLOAT32 else "bfloat16").seconds(device)
            for part, work in (IMAGE_WORK | STUDENT_WORK).items()
        }
        made = images * sum(cost[part] for part in IMAGE_WORK)
        learned = WARMUP * cost["warmup"] + EPOCHS * cost["training"]
        learned += (WARMUP + EPOCHS) * cost["label"]  # of augmented images, so anew each time
        # An epoch leaves out the images that fill no batch.
        seconds = made + images // BATCH * BATCH * learned
        if seconds < 7200:
            return f"{math.ceil(seconds / 60)} minutes"
        return f"{seconds / 3600:.1f} hours"

    if gpu:
        device, reason = estimate.device_of(gpu)
        return f"at least {spent(device)} at the peaks of {device.name}{reason}"
    return "at least " + ", ".join(f"{spent(each)} on {each.name}" for each in estimate.DEVICES)


def _comment(text: str) -> str:
    """The text as lines of a comment."""
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, 98, break_long_words=False))
