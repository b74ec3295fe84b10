"""The model card of an exported student: Markdown, from the facts in `takehome.json`."""

from collections.abc import Mapping
from typing import Any

from dfkd.export.predict import INT8, MODEL
from dfkd.utils.markdown import escape, table

EXAMPLE = """\
import json
import numpy as np, onnxruntime
from PIL import Image, ImageOps

labels = json.load(open("labels.json", encoding="utf-8"))
rules = json.load(open("preprocess.json", encoding="utf-8"))
picture = ImageOps.exif_transpose(Image.open("picture.png"))
assert not picture.mode.startswith("I"), "16 bits a channel: see preprocess.json"
picture = picture.convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
S, short = rules["size"], min(picture.size)
picture = picture.resize([S * side // short for side in picture.size], Image.Resampling.BICUBIC)
left, top = (round((side - S) / 2) for side in picture.size)
pixels = np.float32(picture.crop((left, top, left + S, top + S))).transpose(2, 0, 1)[None] / 255
distances = onnxruntime.InferenceSession("model.onnx").run(None, {"pixels": pixels})[0][0]
cosines = np.cos(np.sqrt(2 * np.clip(distances, 0, np.pi**2 / 2)))
scores = np.exp((cosines - cosines.max()) / rules["temperature"])
for index in distances.argsort()[:3]:
    print(labels[index], round(float(scores[index] / scores.sum()), 3))
"""
"""Example program for the folder, beside a `picture.png`; needs onnxruntime, numpy and pillow."""

EMBEDDING_EXAMPLE = EXAMPLE.replace(
    """\
distances = onnxruntime.InferenceSession("model.onnx").run(None, {"pixels": pixels})[0][0]
""",
    """\
image = onnxruntime.InferenceSession("model.onnx").run(None, {"pixels": pixels})[0][0]
texts = np.float32(list(labels.values()))
distances = np.arccos(texts @ image / np.linalg.norm(image)) ** 2 / 2
""",
).replace("labels[index]", "list(labels)[index]")
"""The same for a student of embeddings."""

OUTPUTS = {
    "distances": """\
`distances`, float32 [N, {classes}]: **smaller is closer**, the
prediction is the argmin. `model.int8.onnx` is the same, quantised. `labels.json` names the outputs
in order,""",
    "embedding": """\
`embedding`, float32 [N, {student[embedding_dim]}], in the
teacher's space. `labels.json` has the unit text embedding of each class; the prediction is the
class with the smallest angle. `model.int8.onnx` is the same, quantised.""",
}
"""What the models give, by what the student learned; `both` gives embeddings too."""

CLASSES = {
    "distances": "",
    "embedding": """
  Another `labels.json` gives it others: `dfkd labels MANIFEST --classes "rocket, tree"`
  writes one for `python -m dfkd.export.predict --labels`. It was not trained for those.""",
}
"""What to do about the classes, by what the student learned."""

CARD = """\
# {name}: a classifier of {classes} classes

A {student[architecture]} ({student[parameters]:,} parameters, {student[image_size]} px) that \
`dfkd` distilled from a vision-language
teacher on {data[images]:,} synthesised images; distillation saw no real one.

`model.onnx` (opset {opset}) takes `pixels`, float32 [N, 3, {student[image_size]}, \
{student[image_size]}] RGB in [0, 1], which it
normalises itself, and gives {output} `preprocess.json` says how a picture becomes `pixels`, \
`takehome.json` holds all figures
below.

## Use

With this package, from the folder above: `python -m dfkd.export.predict student picture.png`.
Without it:

```python
{example}```

It reads what Pillow reads; the command takes PNG, JPEG, WebP and BMP. `preprocess.json` says what
the command does with 16 bits a channel and with very long pictures. The files need onnxruntime 1.14
or later.

## Accuracy

{accuracy}

Over {check[images]:,} synthesised images, none of which calibrated int8, the distances of \
`model.onnx`
differ from PyTorch's by at most {check[model.onnx][max_difference]:.2g}, those of \
`model.int8.onnx`
by at most {check[model.int8.onnx][max_difference]:.2g}; {equal[model.onnx]:.2f} % and \
{equal[model.int8.onnx]:.2f} % of the predictions are the same.

## Size and speed

{speed}

Medians of {latency[runs]} runs with one image on one core ({latency[machine]}); the teacher's
image tower in float32.

## Where it comes from

{origin}

## Limits

- It knows these {classes} classes and answers with one of them whatever the picture shows.\
{other_classes}
- Probabilities are softmax(cosines / {temperature:.4g}), where a distance is half the square of an
  angle; the temperature is the teacher's own (1 / its logit scale) and was fitted to nothing.
- The int8 figures are those of this machine's processor and onnxruntime; others round differently.
- It learned from images that a generator made after the teacher's idea of the class names, and
  inherits the teacher's errors and biases. Try it on pictures of your own before you rely on it.

## Licence

The weights are the output of your run; `dfkd` (Apache-2.0) lays no claim to them. They derive from
the weights of the teacher, the generator and the student's initial backbone, whose licences and
terms apply: read those before you pass this folder on.
"""

ACCURACY = """\
In percent, on `{source}`, which neither synthesis nor distillation has read:

{table}

{average}"""

NOT_SCORED = """\
Not measured, because the run has no labelled images (`evaluation.data: none`) or has not scored its
students (`evaluation.models`). If you get some, set `evaluation.data` and repeat
`dfkd pipeline`: it scores the student and writes this folder anew."""

AVERAGES = {
    "images": "The mean is over domains.",
    "classes": "Each figure is a mean over classes, the last one over domains too.",
}
"""A sentence on what the accuracies are means of, by `evaluation.average`."""

TITLES = {
    "teacher": "teacher zero-shot",
    "student": "student, PyTorch",
    "onnx": "`model.onnx`",
    "int8": "`model.int8.onnx`",
}
"""Names of the models in the tables."""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: the content of `takehome.json`, without the entry of the card itself.
    """
    evaluation, check = facts["evaluation"], facts["check"]
    target = "embedding" if "embedding_dim" in facts["student"] else "distances"
    # A fact that is missing is a `KeyError`, not a blank.
    return CARD.format(
        **facts,
        example=EXAMPLE if target == "distances" else EMBEDDING_EXAMPLE,
        output=OUTPUTS[target].format(**facts),
        other_classes=CLASSES[target],
        accuracy=_accuracy(evaluation) if evaluation else NOT_SCORED,
        equal={name: 100 * check[name]["equal_predictions"] for name in (MODEL, INT8)},
        speed=_speed(facts),
        origin=_origin(facts),
    )


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    """The text with a row for each model that was scored, and a column for each domain."""
    domains = list(evaluation["images"])
    rows = []
    for name, scores in evaluation["accuracy"].items():
        figures = [scores["domains"].get(domain) for domain in domains] + [scores["mean"]]
        cells = ("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)
        rows.append([TITLES[name], *cells])
    counts = [str(count) for count in evaluation["images"].values()]
    rows.append(["images", *counts, str(sum(evaluation["images"].values()))])
    return ACCURACY.format(
        source=evaluation["source"],
        table=table(["", *map(escape, domains), "mean"], rows),
        average=AVERAGES[evaluation["average"]],
    )


def _speed(facts: Mapping[str, Any]) -> str:
    """A table of sizes and times of the teacher's tower and of both files."""
    files, teacher, ms = facts["files"], facts["teacher"], facts["latency"]["ms"]
    sizes = {
        "teacher": teacher["bytes"],
        "onnx": files[MODEL]["bytes"],
        "int8": files[INT8]["bytes"],
    }
    titles = TITLES | {"teacher": f"teacher's image tower, PyTorch, {teacher['image_size']} px"}
    return table(
        ["", "MB", "ms an image"],
        [[titles[name], f"{size / 1e6:.1f}", f"{ms[name]:.1f}"] for name, size in sizes.items()],
    )


def _origin(facts: Mapping[str, Any]) -> str:
    """A table of what the student was made from, with hashes."""
    student, data, calibration = facts["student"], facts["data"], facts["calibration"]
    rows = [
        ["data version", f"`{data['version']}`"],
        ["fingerprint", f"`{data['fingerprint']}`"],
        ["prompt method, seed", f"{student['method']}, {student['seed']}"],
        ["student", f"`{student['folder']}`, sha256 `{student['sha256']}`"],
        ["student's initial weights", f"`{student['weights']}`"],
        ["teacher", escape(str(facts["teacher"]["model"]))],
        *([f"{escape(r)} sha256", f"`{d}`"] for r, d in sorted(data["weights"].items())),
        ["int8 calibration", f"{calibration['images']} images of that version, no others"],
        ["made with", ", ".join(f"{n} {v}" for n, v in sorted(facts["libraries"].items()))],
    ]
    return table(["", ""], rows, names=2)
