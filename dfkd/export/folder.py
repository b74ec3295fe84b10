"""The folder of an exported candidate, which needs neither dfkd nor torch.

    model.onnx         float32; normalises its input itself, any batch size
    model.int8.onnx    the same in int8, calibrated on synthesised images only
    labels.json        class names in the order of the outputs; for a student of embeddings also
                       the text embedding of each (see labels.py)
    preprocess.json    schema 1: from a picture to the input, and from the output to probabilities
    try.html, ort/     a page that classifies pictures in a browser, and its runtime if npm has it
    README.md          the model card, with an example
    candidate.json     schema 1, written last: the measured figures, as in the card

Whether the graphs answer like PyTorch is checked on synthesised images that did not calibrate int8.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as library
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dfkd.config.hashing import sha256_file
from dfkd.dataset.published import PublishedVersion
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
from dfkd.export.try_page import write_try_page
from dfkd.storage.base import Storage
from dfkd.utils.images import Resizing, batch, decode_image

CARD = "README.md"
SCHEMA = 1

CALIBRATION = 256
"""Number of synthesised images that set the ranges of int8 activations, spread over the classes."""

Images = Sequence[npt.NDArray[np.uint8]]
"""Decoded images [S, S, 3]."""


@dataclass(frozen=True)
class Network:
    """A network that can be exported, on the CPU, and how its input and output are read."""

    module: nn.Module
    """Pixels float32 [N, 3, S, S] in [0, 1] to distances [N, M], or to embeddings [N, E]."""
    classes: tuple[str, ...]
    texts: Tensor | None
    """Unit vectors [M, E] of the classes, if the module gives embeddings."""
    image_size: int
    resizing: Resizing
    temperature: float
    """1 / the logit scale of the CLIP whose distances these are."""


def write_graphs(network: Network, folder: Path, version: PublishedVersion) -> dict[str, Any]:
    """Write all that a program reads: both graphs, labels and rules.

    Args:
        version: the data set whose images calibrate int8 and check both graphs.

    Returns:
        The facts about it for `candidate.json`.

    Raises:
        CorruptionError: a shard is damaged, or an image cannot be decoded.
    """
    size, texts = network.image_size, network.texts
    images, others = synthesised_images(version, size, network.resizing)
    export(network.module, size, folder / MODEL, OUTPUT if texts is None else EMBEDDING)
    quantise(folder / MODEL, folder / INT8, images)
    (folder / LABELS).write_text(labels_json(network.classes, texts), encoding="utf-8")
    _write_json(folder / RULES, preprocessing_rules(network))
    return {
        "calibration": {"images": len(images), "version": version.id},
        "check": check_graphs(network, folder, others),
        "temperature": network.temperature,
        "opset": OPSET,
        "libraries": {name: library(name) for name in ("dfkd", "onnx", "onnxruntime", "torch")},
    }


def synthesised_images(
    version: PublishedVersion, size: int, resizing: Resizing
) -> tuple[Images, Images]:
    """The images that calibrate int8, and as many others to check it, [S, S, 3] uint8.

    They are `CALIBRATION` images of a version each, rounded up to the same number for each class,
    or half of all images if the version has fewer.

    Raises:
        CorruptionError: a shard is damaged, or an image cannot be decoded.
    """
    per_class = -(-CALIBRATION // len(version.classes))
    images = [
        sample.decoded(lambda image: decode_image(image, size, resizing))
        for samples in version.first_samples(2 * per_class)
        for sample in samples
    ]
    # Ranges always fit the images that set them, so those would flatter the int8 graph.
    return images[::2], images[1::2]


def preprocessing_rules(network: Network) -> dict[str, Any]:
    """The content of `preprocess.json`: from a picture to the input, from output to probabilities.

    A squared spherical distance is D = angle^2 / 2, so cos(sqrt(2 D)) is the cosine that CLIP
    scales.
    """
    size, resizing = network.image_size, network.resizing
    classes, kernel = len(network.classes), resizing.interpolation.upper()
    output = {
        "name": OUTPUT,
        "dtype": "float32",
        "shape": ["N", classes],
        "meaning": "squared spherical distances to the labels; smaller is closer",
    }
    if network.texts is not None:
        output |= {
            "name": EMBEDDING,
            "shape": ["N", network.texts.shape[1]],
            "meaning": "embedding in the labeller's space, of any length; with the angle between "
            "it and a label's vector, distance = angle^2 / 2; smaller is closer",
        }
    square = [
        "cut the longer side to 8 times the shorter, if it is more, around the centre",
        f"resize (Pillow, {kernel}): shorter side to size, longer to int(size * long / short)",
        "cut size x size out of the centre: left = round((width - size) / 2), top alike",
    ]
    if resizing.mode == "squash":
        square = [f"resize (Pillow, {kernel}) to size x size, whatever its sides"]
    return {
        "schema": SCHEMA,
        "size": size,
        "resize_mode": resizing.mode,
        "interpolation": resizing.interpolation,
        "resize": [
            "turn upright as the EXIF orientation says",
            "put transparency on white and convert to RGB, 16 bits a channel to its upper 8",
            *square,
        ],
        "colours": "RGB",
        "range": [0, 1],
        "normalisation": "none: the model does it",
        "input": {"name": INPUT, "dtype": "float32", "shape": ["N", 3, size, size]},
        "output": output,
        "probabilities": "softmax(cos(sqrt(2 * distances)) / temperature), distances cut to "
        "[0, pi^2 / 2]",
        "temperature": network.temperature,
        "opset": OPSET,
    }


def check_graphs(network: Network, folder: Path, images: Images) -> dict[str, Any]:
    """How far both graphs in `folder` differ from the network in PyTorch.

    Returns:
        The number of images, and for each graph the largest difference of a distance and the
        fraction of images for which the prediction is the same.
    """
    graphs = {name: load_graph(folder / name, 0) for name in (MODEL, INT8)}
    texts = None if network.texts is None else network.texts.numpy()
    largest, equal = dict.fromkeys(graphs, 0.0), dict.fromkeys(graphs, 0)
    for start in range(0, len(images), BATCH):
        pixels = batch(images[start : start + BATCH])
        with torch.inference_mode():
            expected = network.module(torch.from_numpy(pixels)).numpy()
        if texts is not None:
            expected = class_distances(expected, texts)
        for name, graph in graphs.items():
            found = graph(pixels) if texts is None else class_distances(graph(pixels), texts)
            # Two figures, because neither implies the other: a small difference can change the
            # answer for an image between two classes, and a large one often changes none.
            largest[name] = max(largest[name], float(np.abs(found - expected).max()))
            equal[name] += int((found.argmin(1) == expected.argmin(1)).sum())
    checks = {
        name: {"max_difference": largest[name], "equal_predictions": equal[name] / len(images)}
        for name in graphs
    }
    return {"images": len(images), **checks}


def publish(folder: Path, facts: Mapping[str, Any], home: Storage) -> None:
    """Put all files into storage, with page, card and `candidate.json`, which are written here.

    `candidate.json` is deleted first and put last, so a folder with it is complete.
    """
    write_try_page(folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    facts = {"schema": SCHEMA, **facts, "files": {n: _file_facts(folder / n) for n in names}}
    # The card shows the files' sizes, so it is written after their facts and gets its own then.
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    facts["files"][CARD] = _file_facts(folder / CARD)
    _write_json(folder / FACTS, facts)
    home.delete(FACTS)
    for name in (*names, CARD, FACTS):
        home.put(name, folder / name)


def _write_json(path: Path, content: object) -> None:
    """Write indented UTF-8 JSON, which people read too."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes, and the sha256 that `predict.py` checks."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
