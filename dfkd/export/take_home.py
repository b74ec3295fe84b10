"""The take-home student: a folder `student/` beside the results that needs neither dfkd nor torch.

    model.onnx         float32; normalises by itself, the batch is free
    model.int8.onnx    the same in int8, calibrated on synthesised images only
    labels.json        names in the order of the outputs
    preprocess.json    schema 1: from a picture to the input, and from the output to probabilities
    README.md          the model card, with an example
    takehome.json      schema 1, written last: what is stated here and in the card, as measured

It is the student of the last of the manifest's methods and the first seed in
`distillation.seeds`. Everything is measured again each time, so the folder fits the results.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as library
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfkd.config.fingerprint import sha256_file
from dfkd.config.manifest import Average, Manifest
from dfkd.dataset.shards import Sample
from dfkd.dataset.versions import PublishedVersion
from dfkd.distillation.student_store import StudentLocation, locate_student
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.data import open_data
from dfkd.evaluation.footprint import FLOAT32, parameters
from dfkd.evaluation.results import ResultRow, accuracy_of, summarise
from dfkd.evaluation.scoring import BATCH, Candidate, Model, score_together
from dfkd.export.model_card import model_card
from dfkd.export.onnx_graphs import INPUT, OPSET, OUTPUT, export, load_graph, quantise
from dfkd.export.predict import FACTS, INT8, LABELS, MODEL, RULES
from dfkd.models.student import Student, load_student
from dfkd.models.teacher import Teacher
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.hardware import one_core
from dfkd.utils.images import pixels

FOLDER, CARD = "student", "README.md"
SCHEMA = 1

CALIBRATION = 256
"""Synthesised images that set the ranges of int8 activations, spread over the classes."""
CPU = torch.device("cpu")


def write_take_home(manifest: Manifest, results: Mapping[str, Any], threads: int) -> str:
    """Write the folder of the student that a run hands out, checked over the evaluation data.

    Args:
        manifest: of the run, evaluated.
        results: the content of `results.json`, with rows of that student.
        threads: for decoding and for the models, except where one core is timed.

    Returns:
        The place of the folder, for display.

    Raises:
        ManifestError: the student is missing or was not scored.
        CorruptionError: student or data set are not what was written.
    """
    chosen = locate_student(manifest, manifest.methods[-1], manifest.distillation.seeds[0])
    accuracy = _scored_accuracy(results, chosen)
    student, about = load_student(chosen.storage)
    teacher = Teacher.load(manifest.teacher, CPU, cache=manifest.cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = calibration_images(chosen.version, about["image_size"])
        export(student, about["image_size"], folder / MODEL)
        quantise(folder / MODEL, folder / INT8, images)
        how = preprocessing_rules(about, 1 / teacher.logit_scale)
        _put_json(folder / LABELS, about["classes"])
        _put_json(folder / RULES, how)
        facts = {
            **_origin(manifest, chosen, about, student, teacher),
            "calibration": {"images": len(images), "version": chosen.version.id},
            "temperature": how["temperature"],
            "latency": _latency(folder, student, teacher, about["image_size"]),
        }
        comparison = Comparison(student, folder, how["temperature"], threads)
        facts["evaluation"] = _evaluate(manifest, comparison, accuracy, about, threads)
        facts["check"], facts["confidence"] = comparison.facts(), comparison.confidence
        return _publish(folder, facts, open_storage(manifest.storage.root).child(FOLDER))


def _scored_accuracy(results: Mapping[str, Any], chosen: StudentLocation) -> dict[str, Any]:
    """Accuracy of the student in PyTorch and of the teacher (if scored), as evaluation found it."""
    rows: list[ResultRow] = results["rows"]
    wanted = ("student", chosen.method, chosen.seed)
    own = [row for row in rows if (row["model"], row["method"], row["seed"]) == wanted]
    if not own:
        raise ManifestError(
            "evaluation.models",
            f"must score the student of method {chosen.method} seed {chosen.seed} to hand it out",
            sorted({row["model"] for row in rows}),
            "run jobs/evaluate.py with evaluation.models=[teacher, student]",
        )
    teacher = [row for row in rows if row["model"] == "teacher"]
    average = results["average"]
    return {
        "torch": _accuracy(own, average),
        "teacher": _accuracy(teacher, average) if teacher else None,
    }


def _accuracy(rows: Sequence[ResultRow], average: Average) -> dict[str, Any]:
    """Per domain, and the mean over domains, from the rows of one model."""
    domains = {row["domain"]: accuracy_of(row, average) for row in rows}
    return {"domains": domains, "mean": summarise(rows, average)[0]["mean"]}


def calibration_images(version: PublishedVersion, size: int) -> list[npt.NDArray[np.uint8]]:
    """The first images of each class of a version, [S, S, 3] uint8, `CALIBRATION` or more in all.

    Raises:
        CorruptionError: a shard is not what was published.
    """
    left = [-(-CALIBRATION // len(version.classes))] * len(version.classes)
    images = []
    for receipt in sorted(version.shards, key=lambda receipt: receipt.task):
        row = int(receipt.task.partition("-")[0])
        if left[row]:
            found = [_decoded(s, size) for s in islice(version.samples(receipt), left[row])]
            left[row] -= len(found)
            images += found
    return images


def _decoded(sample: Sample, size: int) -> npt.NDArray[np.uint8]:
    try:
        return pixels(sample.image, size)
    except ValueError as error:
        raise CorruptionError(
            f"image {sample.key} cannot be read ({error}); synthesise it again"
        ) from None


def preprocessing_rules(about: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """The content of `preprocess.json`: from a picture to the input, from output to probabilities.

    Args:
        about: the student's card.
        temperature: the teacher's own, 1 / its logit scale. On unit vectors a squared spherical
            distance D is angle^2 / 2, and so cosine = 1 - D to the second order: a softmax of
            -D / temperature is CLIP's softmax of its scaled cosines, to that order.
    """
    size, classes = about["image_size"], len(about["classes"])
    return {
        "schema": SCHEMA,
        "size": size,
        "resize": [
            "turn upright as the EXIF orientation says",
            "put transparency on white and convert to RGB, 16 bits a channel to its upper 8",
            "cut the longer side to 8 times the shorter, if it is more, around the centre",
            "resize (Pillow, BICUBIC): shorter side to size, longer to int(size * long / short)",
            "cut size x size out of the centre: left = round((width - size) / 2), top alike",
        ],
        "colours": "RGB",
        "range": [0, 1],
        "normalisation": "none: the model does it",
        "input": {"name": INPUT, "dtype": "float32", "shape": ["N", 3, size, size]},
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["N", classes],
            "meaning": "squared spherical distances to the labels; smaller is closer",
        },
        "probabilities": "softmax(-distances / temperature)",
        "temperature": temperature,
        "opset": OPSET,
    }


def _origin(
    manifest: Manifest,
    chosen: StudentLocation,
    about: Mapping[str, Any],
    student: Student,
    teacher: Teacher,
) -> dict[str, Any]:
    """What the student is and what it was made from."""
    tower: Any = teacher.model.visual
    card = {key: about[key] for key in ("architecture", "stem", "image_size", "sha256")}
    return {
        "schema": SCHEMA,
        "name": manifest.name,
        "classes": len(about["classes"]),
        "student": {
            **card,
            "folder": chosen.name,
            "method": chosen.method,
            "seed": chosen.seed,
            "parameters": parameters(student),
        },
        "data": {
            "version": chosen.version.id,
            "fingerprint": chosen.version.fingerprint,
            "images": chosen.version.manifest["samples"],
        },
        "teacher": {
            "model": manifest.teacher.model,
            "weights": chosen.version.manifest["weights"],
            "image_size": teacher.image_size,
            "parameters": parameters(tower),
            "bytes": FLOAT32 * parameters(tower),
        },
        "opset": OPSET,
        "libraries": {name: library(name) for name in ("onnx", "onnxruntime", "torch")},
    }


class Comparison:
    """The float graph as a model to score, which notes how far both graphs are from PyTorch."""

    def __init__(self, student: Student, folder: Path, temperature: float, threads: int) -> None:
        self.student, self.temperature = student, temperature
        self.graphs = {name: load_graph(folder / name, threads) for name in (MODEL, INT8)}
        self.images, self.total = 0, 0.0
        self.largest = dict.fromkeys(self.graphs, 0.0)
        self.equal = dict.fromkeys(self.graphs, 0)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Distances of the float graph, compared."""
        expected = self.student(pixels).numpy()
        found = {name: graph(pixels.numpy()) for name, graph in self.graphs.items()}
        self.images += len(expected)
        for name, distances in found.items():
            apart = float(np.abs(distances - expected).max())
            self.largest[name] = max(self.largest[name], apart)
            self.equal[name] += int((distances.argmin(1) == expected.argmin(1)).sum())
        exact = torch.from_numpy(found[MODEL])
        self.total += float((-exact / self.temperature).softmax(1).amax(1).sum())
        return exact

    @property
    def confidence(self) -> float:
        """Mean over the images of the float graph's highest probability."""
        return self.total / self.images

    def int8(self, pixels: Tensor) -> Tensor:
        """The int8 graph as a model to score."""
        return torch.from_numpy(self.graphs[INT8](pixels.numpy()))

    def facts(self) -> dict[str, Any]:
        """Of all images that were scored: largest difference and share of equal predictions."""
        graphs = {
            name: {
                "max_difference": self.largest[name],
                "equal_predictions": self.equal[name] / self.images,
            }
            for name in self.graphs
        }
        return {"images": self.images, **graphs}


def _evaluate(
    manifest: Manifest,
    comparison: Comparison,
    accuracy: Mapping[str, Any],
    about: Mapping[str, Any],
    threads: int,
) -> dict[str, Any]:
    """Accuracy of all that is handed out, beside that of PyTorch and of the teacher."""
    data = open_data(manifest.evaluation, manifest.classes)
    size = about["image_size"]
    models: dict[str, Model] = {"onnx": comparison, "int8": comparison.int8}
    candidates = [Candidate("student", name, 0, size, models[name], CPU) for name in models]
    scores = score_together(candidates, data, BATCH, threads)
    images = {row["domain"]: row["images"] for row in scores.rows}
    found = {name: [row for row in scores.rows if row["method"] == name] for name in models}
    right = sum(row["images"] * row["accuracy"] for row in found["onnx"])
    average = manifest.evaluation.average
    return {
        "source": data.source,
        "images": images,
        "unreadable": len(scores.unreadable),
        "average": average,
        "right": right / sum(images.values()),
        "accuracy": {
            **accuracy,
            **{name: _accuracy(rows, average) for name, rows in found.items()},
        },
    }


def _latency(folder: Path, student: Student, teacher: Teacher, size: int) -> dict[str, Any]:
    """Median milliseconds of one image on one core, of everything that could answer."""
    seen = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    side = teacher.image_size
    large = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    graphs = {name: load_graph(folder / name, 1) for name in (MODEL, INT8)}
    calls: dict[str, Callable[[], object]] = {
        "onnx": lambda: graphs[MODEL](seen.numpy()),
        "int8": lambda: graphs[INT8](seen.numpy()),
        "torch": lambda: student(seen),
        "teacher": lambda: teacher.encode_image(large),
    }
    with torch.inference_mode():
        return one_core(calls)


def _put_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _publish(folder: Path, facts: dict[str, Any], home: Storage) -> str:
    """Put all files; without `takehome.json`, which is put last, the folder is not complete."""
    names = (MODEL, INT8, LABELS, RULES)
    facts["files"] = {name: _file(folder / name) for name in names}
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    facts["files"][CARD] = _file(folder / CARD)
    _put_json(folder / FACTS, facts)
    home.delete(FACTS)
    for name in (*names, CARD, FACTS):
        home.put(name, folder / name)
    return home.location()


def _file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
