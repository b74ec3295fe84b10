"""The exported student: a folder `student/` beside the results that needs neither dfkd nor torch.

    model.onnx         float32; normalises its input itself, any batch size
    model.int8.onnx    the same in int8, calibrated on synthesised images only
    labels.json        class names in the order of the outputs; for a student of embeddings also
                       the text embedding of each (see labels.py)
    preprocess.json    schema 1: from a picture to the input, and from the output to probabilities
    README.md          the model card, with an example
    takehome.json      schema 1, written last: the measured figures, as in the card

The student is that of the manifest's last method and the first seed in `distillation.seeds`. Its
accuracy is that of `results.json`. Whether the graphs answer alike is checked on synthesised images
that did not calibrate int8.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as library
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.student_names import weights_identity
from dfkd.distillation.student_store import StudentLocation, locate_student
from dfkd.evaluation.footprint import FLOAT32, parameters
from dfkd.evaluation.results import ZERO_SHOT, accuracy_of, images_of, summarise
from dfkd.evaluation.scoring import BATCH
from dfkd.export.labels import labels_json
from dfkd.export.model_card import model_card
from dfkd.export.onnx_graphs import (
    EMBEDDING,
    INPUT,
    OPSET,
    OUTPUT,
    export,
    load_graph,
    quantise,
)
from dfkd.export.predict import FACTS, INT8, LABELS, MODEL, RULES
from dfkd.export.predict import distances as class_distances
from dfkd.models.student import Student, load_student
from dfkd.models.teacher import Teacher
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import time_on_one_core
from dfkd.utils.images import batch, decode_image

FOLDER, CARD = "student", "README.md"
SCHEMA = 1

CALIBRATION = 256
"""Number of synthesised images that set the ranges of int8 activations, spread over the classes."""
CPU = torch.device("cpu")


def write_take_home(manifest: Manifest, results: Mapping[str, Any] | None, threads: int) -> str:
    """Export the run's student to `student/`, whose location is returned.

    Args:
        manifest: of a run whose students are finished.
        results: the content of `results.json`, which has the accuracies; None without evaluation
            data.
        threads: threads for the models; the timing uses one core.

    Raises:
        ManifestError: nothing is published for the last method.
        CorruptionError: student or data set are missing or damaged.
    """
    location = locate_student(manifest, manifest.methods[-1], manifest.distillation.seeds[0])
    student, card = load_student(location.storage)
    teacher = Teacher.load(manifest.teacher, CPU, cache=manifest.cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, others = synthesised_images(location.version, card["image_size"])
        output = OUTPUT if student.texts is None else EMBEDDING
        export(student.with_classes(None), card["image_size"], folder / MODEL, output)
        quantise(folder / MODEL, folder / INT8, images)
        rules = preprocessing_rules(card, 1 / teacher.logit_scale)
        (folder / LABELS).write_text(labels_json(card["classes"], student.texts), encoding="utf-8")
        _write_json(folder / RULES, rules)
        facts = {
            **_origin(manifest, location, card, student, teacher),
            "calibration": {"images": len(images), "version": location.version.id},
            "temperature": rules["temperature"],
            "latency": _latency(folder, student, teacher, card["image_size"]),
            "evaluation": _evaluation(results, location),
            "check": check_graphs(student, folder, others, threads),
        }
        return _publish(folder, facts, open_storage(manifest.storage.root).child(FOLDER))


def _evaluation(
    results: Mapping[str, Any] | None, student: StudentLocation
) -> dict[str, Any] | None:
    """The scored data, and the accuracies of the student and of the teacher, if it was scored.

    None if there are no results, or none of this student.
    """
    if results is None or student.name not in results["students"]:
        return None
    average = results["average"]
    models = {
        "teacher": ("teacher", ZERO_SHOT, 0),
        "student": ("student", student.method, student.seed),
    }
    accuracy = {}
    for name, key in models.items():
        rows = [r for r in results["rows"] if (r["model"], r["method"], r["seed"]) == key]
        if rows:
            domains = {row["domain"]: accuracy_of(row, average) for row in rows}
            mean = summarise(rows, average)[0]["mean"]
            accuracy[name] = {"domains": domains, "mean": mean}
    return {
        "source": results["data"]["source"],
        "images": images_of(results),
        "unreadable": len(results["data"]["unreadable"]),
        "average": average,
        "accuracy": accuracy,
    }


def synthesised_images(
    version: PublishedVersion, size: int
) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.uint8]]]:
    """The images that calibrate int8, and as many others to check it, [S, S, 3] uint8.

    They are `CALIBRATION` images of a version each, rounded up to the same number for each class,
    or half of all images if the version has fewer.

    Raises:
        CorruptionError: a shard is damaged, or an image cannot be decoded.
    """
    per_class = -(-CALIBRATION // len(version.classes))
    images = [
        sample.decoded(lambda image: decode_image(image, size))
        for samples in version.first_samples(2 * per_class)
        for sample in samples
    ]
    # Ranges always fit the images that set them, so those would flatter the int8 graph.
    return images[::2], images[1::2]


def preprocessing_rules(card: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """The content of `preprocess.json`: from a picture to the input, from output to probabilities.

    Args:
        card: the student's card.
        temperature: the teacher's temperature, 1 / its logit scale. A squared spherical distance is
            D = angle^2 / 2, so cos(sqrt(2 D)) is the cosine that CLIP scales.
    """
    size, width = card["image_size"], card.get("embedding_dim")
    output = {
        "name": EMBEDDING if width else OUTPUT,
        "dtype": "float32",
        "shape": ["N", width or len(card["classes"])],
        "meaning": "squared spherical distances to the labels; smaller is closer",
    }
    if width:
        output["meaning"] = (
            "embedding in the teacher's space, of any length; with the angle between it and a "
            "label's vector, distance = angle^2 / 2; smaller is closer"
        )
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
        "output": output,
        "probabilities": "softmax(cos(sqrt(2 * distances)) / temperature), distances cut to "
        "[0, pi^2 / 2]",
        "temperature": temperature,
        "opset": OPSET,
    }


def _origin(
    manifest: Manifest,
    location: StudentLocation,
    card: Mapping[str, Any],
    student: Student,
    teacher: Teacher,
) -> dict[str, Any]:
    """The facts about student, data set and teacher for `takehome.json`."""
    tower: Any = teacher.model.visual
    shape = {key: card[key] for key in ("architecture", "image_size", "sha256")}
    if student.texts is not None:
        shape |= {key: card[key] for key in ("target", "embedding_dim")}
    return {
        "schema": SCHEMA,
        "name": manifest.name,
        "classes": len(card["classes"]),
        "student": {
            **shape,
            "folder": location.name,
            "method": location.method,
            "seed": location.seed,
            "weights": weights_identity(manifest.distillation.weights),
            "parameters": parameters(student),
        },
        "data": {
            "version": location.version.id,
            "fingerprint": location.version.fingerprint,
            "images": location.version.facts["samples"],
            "weights": location.version.facts["weights"],
        },
        "teacher": {
            "model": manifest.teacher.model,
            "image_size": teacher.image_size,
            "parameters": parameters(tower),
            "bytes": FLOAT32 * parameters(tower),
        },
        "opset": OPSET,
        "libraries": {name: library(name) for name in ("dfkd", "onnx", "onnxruntime", "torch")},
    }


def check_graphs(
    student: Student, folder: Path, images: Sequence[npt.NDArray[np.uint8]], threads: int
) -> dict[str, Any]:
    """How far both graphs in `folder` differ from the student in PyTorch.

    Args:
        images: decoded images, [S, S, 3] uint8.

    Returns:
        The number of images, and for each graph the largest difference of a distance and the
        fraction of images for which the prediction is the same.
    """
    graphs = {name: load_graph(folder / name, threads) for name in (MODEL, INT8)}
    largest, equal = dict.fromkeys(graphs, 0.0), dict.fromkeys(graphs, 0)
    for start in range(0, len(images), BATCH):
        pixels = batch(images[start : start + BATCH])
        with torch.inference_mode():
            expected = student(torch.from_numpy(pixels)).numpy()
        for name, graph in graphs.items():
            found = graph(pixels)
            if student.texts is not None:  # a graph of embeddings
                found = class_distances(found, student.texts.numpy())
            # Two figures, because neither implies the other: a small difference can change the
            # answer for an image between two classes, and a large one often changes none.
            largest[name] = max(largest[name], float(np.abs(found - expected).max()))
            equal[name] += int((found.argmin(1) == expected.argmin(1)).sum())
    checks = {
        name: {"max_difference": largest[name], "equal_predictions": equal[name] / len(images)}
        for name in graphs
    }
    return {"images": len(images), **checks}


def _latency(folder: Path, student: Student, teacher: Teacher, size: int) -> dict[str, Any]:
    """Median milliseconds for one image on one core, of the graphs, the student and the teacher.

    The content is that of `time_on_one_core`: `ms` by name, and the conditions.
    """
    small = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    side = teacher.image_size
    large = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    graphs = {name: load_graph(folder / name, 1) for name in (MODEL, INT8)}
    calls: dict[str, Callable[[], object]] = {
        "onnx": lambda: graphs[MODEL](small.numpy()),
        "int8": lambda: graphs[INT8](small.numpy()),
        "torch": lambda: student(small),
        "teacher": lambda: teacher.encode_image(large),
    }
    with torch.inference_mode():
        return time_on_one_core(calls)


def _write_json(path: Path, content: object) -> None:
    """Write indented UTF-8 JSON, which people read too."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _publish(folder: Path, facts: dict[str, Any], home: Storage) -> str:
    """Put all files into storage; returns the folder's location.

    `takehome.json` is deleted first and put last, so a folder with it is complete.
    """
    names = (MODEL, INT8, LABELS, RULES)
    facts["files"] = {name: _file_facts(folder / name) for name in names}
    # The card shows the files' sizes, so it is written after their facts and gets its own then.
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    facts["files"][CARD] = _file_facts(folder / CARD)
    _write_json(folder / FACTS, facts)
    home.delete(FACTS)
    for name in (*names, CARD, FACTS):
        home.put(name, folder / name)
    return home.location()


def _file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes, and the sha256 that `predict.py` checks."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
