"""The model card of an exported student: Markdown, from the facts in `takehome.json`."""

from collections.abc import Mapping
from typing import Any

EXAMPLE = """\
import json
import numpy as np, onnxruntime
from PIL import Image, ImageOps

labels = json.load(open("labels.json", encoding="utf-8"))
rules = json.load(open("preprocess.json", encoding="utf-8"))
picture = ImageOps.exif_transpose(Image.open("picture.png")).convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
S, short = rules["size"], min(picture.size)
picture = picture.resize([S * side // short for side in picture.size], Image.Resampling.BICUBIC)
left, top = (round((side - S) / 2) for side in picture.size)
pixels = np.float32(picture.crop((left, top, left + S, top + S))).transpose(2, 0, 1)[None] / 255
distances = onnxruntime.InferenceSession("model.onnx").run(None, {"pixels": pixels})[0][0]
scores = np.exp((distances.min() - distances) / rules["temperature"])
for index in distances.argsort()[:3]:
    print(labels[index], round(float(scores[index] / scores.sum()), 3))
"""
"""Example program for the folder, beside a `picture.png`; needs onnxruntime, numpy and pillow."""

CARD = """\
# {name}: a classifier of {classes} classes

A {architecture} ({parameters:,} parameters, {size} px) that `dfkd` distilled from a vision-language
teacher on {images:,} synthesised images and no real one.

`model.onnx` (opset {opset}) takes `pixels`, float32 [N, 3, {size}, {size}] RGB in [0, 1], which it
normalises itself, and gives `distances`, float32 [N, {classes}]: **smaller is closer**, the
prediction is the argmin. `model.int8.onnx` is the same, quantised. `labels.json` names the outputs
in order, `preprocess.json` says how a picture becomes `pixels`, `takehome.json` holds all figures
below.

## Use

With this package, from the folder above: `python -m dfkd.export.predict student picture.png`.
Without it:

```python
{example}```

This leaves out what `preprocess.json` says of 16 bits a channel and of very long pictures.

## Accuracy

In percent, on `{source}`, which neither synthesis nor distillation has read:

{accuracy}

{average} {check}

## Size and speed

{speed}

{timing}

## Where it comes from

{origin}

## Limits

- It knows these {classes} classes and answers with one of them whatever the picture shows.
- Probabilities are softmax(-distances / {temperature:.4g}); the temperature is the teacher's own
  (1 / its logit scale) and was fitted to nothing. {confidence}
- The int8 figures are those of this machine's processor and onnxruntime; others round differently.
- It learned from images that a generator made after the teacher's idea of the class names, and
  inherits the teacher's errors and biases. Try it on pictures of your own before you rely on it.

## Licence

The weights are the output of your run; `dfkd` (Apache-2.0) lays no claim to them. They derive from
the weights of the teacher and the generator, whose licences and terms apply: read those before you
pass this folder on.
"""

AVERAGES = {
    "images": "The mean is over domains.",
    "classes": "Each figure is a mean over classes, the last one over domains too.",
}
"""A sentence on what the accuracies are means of, by `evaluation.average`."""

TITLES = {
    "teacher": "teacher zero-shot",
    "torch": "student, PyTorch",
    "onnx": "`model.onnx`",
    "int8": "`model.int8.onnx`",
}
"""Names of the models in the tables."""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: the content of `takehome.json`, without the entry of the card itself.
    """
    student, evaluation = facts["student"], facts["evaluation"]
    return CARD.format(
        name=facts["name"],
        classes=facts["classes"],
        architecture=student["architecture"],
        parameters=student["parameters"],
        size=student["image_size"],
        images=facts["data"]["images"],
        opset=facts["opset"],
        example=EXAMPLE,
        source=evaluation["source"],
        accuracy=_accuracy(evaluation),
        average=AVERAGES[evaluation["average"]],
        check=_check(facts["check"]),
        speed=_speed(facts),
        timing=_timing(facts["latency"]),
        origin=_origin(facts),
        temperature=facts["temperature"],
        confidence=_confidence(facts),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    """A table with a row for each model that was scored, and a column for each domain."""
    domains = list(evaluation["images"])
    rows = []
    for name, title in TITLES.items():
        if scores := evaluation["accuracy"][name]:
            figures = [scores["domains"].get(domain) for domain in domains] + [scores["mean"]]
            rows.append([title, *("-" if f is None else f"{100 * f:.1f}" for f in figures)])
    counts = [str(count) for count in evaluation["images"].values()]
    rows.append(["images", *counts, str(sum(evaluation["images"].values()))])
    return _table(["", *domains, "mean"], rows)


def _check(check: Mapping[str, Any]) -> str:
    """A sentence on how far the exported files differ from PyTorch."""
    exact, small = check["model.onnx"], check["model.int8.onnx"]
    return (
        f"Over all {check['images']:,} images the distances of\n`model.onnx` differ from "
        f"PyTorch's by at most {exact['max_difference']:.2g}, those of `model.int8.onnx`\n"
        f"by at most {small['max_difference']:.2g}; {100 * exact['equal_predictions']:.2f} % and "
        f"{100 * small['equal_predictions']:.2f} % of the predictions are the same."
    )


def _speed(facts: Mapping[str, Any]) -> str:
    """A table of sizes and times of the teacher's tower and of both files."""
    files, teacher, ms = facts["files"], facts["teacher"], facts["latency"]["ms"]
    sizes = {
        "teacher": teacher["bytes"],
        "onnx": files["model.onnx"]["bytes"],
        "int8": files["model.int8.onnx"]["bytes"],
    }
    titles = TITLES | {"teacher": f"teacher's image tower, PyTorch, {teacher['image_size']} px"}
    return _table(
        ["", "MB", "ms an image"],
        [[titles[name], f"{size / 1e6:.1f}", f"{ms[name]:.1f}"] for name, size in sizes.items()],
    )


def _timing(latency: Mapping[str, Any]) -> str:
    """A sentence on how the times were measured."""
    return (
        f"Medians of {latency['runs']} runs with one image on one core ({latency['machine']}); "
        "the teacher's\nimage tower in float32."
    )


def _confidence(facts: Mapping[str, Any]) -> str:
    """A sentence that sets the mean confidence beside the share of right answers."""
    sure, right = facts["confidence"], facts["evaluation"]["right"]
    return (
        f"On the evaluation data the\n  highest probability is {100 * sure:.0f} % on average, and "
        f"{100 * right:.0f} % of the answers are right."
    )


def _origin(facts: Mapping[str, Any]) -> str:
    """A table of what the student was made from, with hashes."""
    student, data, calibration = facts["student"], facts["data"], facts["calibration"]
    rows = [
        ["data version", f"`{data['version']}`"],
        ["fingerprint", f"`{data['fingerprint']}`"],
        ["prompt method, seed", f"{student['method']}, {student['seed']}"],
        ["student", f"`{student['folder']}`, sha256 `{student['sha256']}`"],
        ["teacher", str(facts["teacher"]["model"])],
        *([f"{r} sha256", f"`{d}`"] for r, d in sorted(facts["teacher"]["weights"].items())),
        ["int8 calibration", f"{calibration['images']} images of that version, no others"],
        ["made with", ", ".join(f"{n} {v}" for n, v in sorted(facts["libraries"].items()))],
    ]
    return _table(["", ""], rows)
