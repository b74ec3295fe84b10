"""Cost of an exported student: milliseconds on one core and bytes, compared with its teacher."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.benchmarks.measure import Effort, Figure, Results
from dfkd.config.manifest import Manifest
from dfkd.export.onnx_graphs import export, load_graph, quantise
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import find_weights, read_architecture
from dfkd.utils.hardware import time_on_one_core

CALIBRATION = 16
"""Number of noise images that calibrate int8; the speed does not depend on them."""
SIZES = (0.5, 1, 2)
"""Image sizes relative to the manifest's."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Measure the manifest's student with random weights, exported, and its teacher in torch.

    Returns:
        `figures`; and by `image_size`: `ms` (median for one image on one core) and `bytes`, by
        model, with the conditions of the measurement.
    """
    sizes = (int(share * manifest.synthesis.image_size) for share in SIZES)
    by_size = {str(size): _measure_size(manifest, size) for size in sizes}
    figures = [figure for size, facts in by_size.items() for figure in _figures(size, facts)]
    return {"image_size": by_size, "figures": figures}


def _figures(size: str, facts: dict[str, Any]) -> Iterator[Figure]:
    """Time and bytes of each model at an image size; times are compared with the teacher's."""
    teacher, peer = facts["ms"]["teacher"], f"teacher, {size} px"
    for model, ms in facts["ms"].items():
        comparison = {} if model == "teacher" else {"peer": peer, "ratio": teacher / ms}
        yield Figure(f"{model}, {size} px", "ms", (ms,), **comparison)
    for model, count in facts["bytes"].items():
        yield Figure(f"weights of the {model}, {size} px", "B", (count,))


def _measure_size(manifest: Manifest, size: int) -> dict[str, Any]:
    """Export the student at an image size; returns `ms` and `bytes` by model."""
    config = manifest.distillation
    teacher = Teacher.load(manifest.teacher, torch.device("cpu"), "float32", manifest.cache)
    student = build(config, len(manifest.classes), size, seed=0, cache=manifest.cache).eval()
    # Noise is enough: neither the time nor the size of a graph depends on the pixels.
    noise = np.random.default_rng(0).integers(256, size=(CALIBRATION, size, size, 3))
    images = list(noise.astype(np.uint8))
    pixels = images[0].transpose(2, 0, 1)[None].astype(np.float32) / 255
    tensor = torch.from_numpy(pixels)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        export(student, size, float_path)
        quantise(float_path, int8_path, images)
        # One thread here, because `time_on_one_core` limits torch only.
        run_float, run_int8 = load_graph(float_path, threads=1), load_graph(int8_path, threads=1)
        timed = time_on_one_core(
            {
                "teacher": torch.no_grad()(lambda: teacher.encode_image(tensor)),
                "student": lambda: run_float(pixels),
                "student, int8": lambda: run_int8(pixels),
            }
        )
        sizes = {"student": float_path.stat().st_size, "student, int8": int8_path.stat().st_size}
    architecture = read_architecture(manifest.teacher.model)
    weights = find_weights(manifest.teacher.weights, architecture, manifest.cache)
    return {**timed, "bytes": {"teacher": weights.path.stat().st_size, **sizes}}
