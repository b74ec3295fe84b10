"""Time the hot paths of a manifest on this machine: synthesis steps and distillation steps."""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dfkd import command
from dfkd.cluster.build import environment
from dfkd.device import pick_device, use_threads
from dfkd.distillation import Course, Distiller
from dfkd.generator import VQGAN
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.storage import open_storage
from dfkd.streaming import Batch
from dfkd.student import build
from dfkd.synthesis import synthesise
from dfkd.teacher import Teacher, distances

STEPS = 5
"""Steps of one timed repeat; the first repeat warms up and is not counted."""


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be timed."""
    return {"repeats": options.repeats, "steps_per_repeat": STEPS, "threads": options.threads}


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Time, print medians, and write benchmark.json; returns its location."""
    use_threads(options.threads)
    device = pick_device()
    teacher = Teacher.load(manifest.teacher, device, manifest.synthesis.precision)
    rates = {
        "synthesis_image_steps_per_s": _synthesis(manifest, teacher, device),
        "distillation_images_per_s": _distillation(manifest, teacher, device),
    }
    results = {name: _repeat(call, options.repeats) for name, call in rates.items()}
    for name, values in results.items():
        print(f"{name}: median {statistics.median(values):.1f} of {len(values)}")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "results": results,
    }
    storage = open_storage(manifest.storage.root)
    storage.put("benchmark.json", (json.dumps(record, indent=2) + "\n").encode())
    return storage.location("benchmark.json")


def _repeat(call: Callable[[], int], repeats: int) -> list[float]:
    """Images (or image steps) a second of each repeat."""
    rates = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        done = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(done / (time.perf_counter() - begun))
    return rates[1:]


def _synthesis(manifest: Manifest, teacher: Teacher, device: torch.device) -> Callable[[], int]:
    settings = {**manifest.as_dict()["synthesis"], "steps": STEPS, "patience": 0}
    config = type(manifest.synthesis)(**settings)
    generator = VQGAN.load(manifest.generator, device, config.precision)
    targets = class_texts(manifest, teacher)[:1].expand(config.batch_size, -1)

    def call() -> int:
        synthesise(teacher, generator, config, targets, range(config.batch_size))
        return STEPS * config.batch_size

    return call


def _distillation(manifest: Manifest, teacher: Teacher, device: torch.device) -> Callable[[], int]:
    config, size = manifest.distillation, manifest.synthesis.image_size
    texts = class_texts(manifest, teacher)
    student = build(config, len(manifest.classes), size, seed=0)
    course = Course(steps_per_epoch=1, warmup=0, total=1_000_000)

    def label(pixels: torch.Tensor) -> torch.Tensor:
        return distances(teacher.encode_image(pixels), texts)

    live = label if config.labels == "live" else None
    distiller = Distiller(student, config, course, 0, live, device=device)
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (config.batch_size, 3, size, size), generator=noise)
    stored = torch.ones(config.batch_size, len(manifest.classes))
    batch = Batch(pixels.to(torch.uint8), stored)

    def call() -> int:
        for _ in range(STEPS):
            distiller.advance(batch)
        return STEPS * config.batch_size

    return call


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "")
    arguments.add_argument("--repeats", type=int, default=5, help="timed repeats of each path")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads of this process")
    return command.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
