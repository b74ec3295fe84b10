"""The model card of an exported candidate: Markdown, from the facts in `candidate.json`."""

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
kernel, squash = Image.Resampling[rules["interpolation"].upper()], rules["resize_mode"] == "squash"
picture = picture.resize([S if squash else S * d // short for d in picture.size], kernel)
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
labeller's space. `labels.json` has the unit text embedding of each class; the prediction is the
class with the smallest angle. `model.int8.onnx` is the same, quantised.""",
}
"""What the models give, by what the student learned; `both` gives embeddings too."""

CLASSES = {
    "distances": "",
    "embedding": """
  Another `labels.json` gives it others: `dfkd labels MANIFEST --classes "rocket, tree"` writes one
  for `dfkd predict --labels`. It was not trained for those.""",
}
"""What to do about the classes, by what the student learned."""

SUBJECT = {
    "distilled": """\
A {model} ({parameters:,} parameters, {image_size} px) that `dfkd` distilled from a vision-language
teacher on {data[images]:,} synthesised images; distillation saw no real one.""",
    "zero-shot": """\
The image tower of the CLIP model {model} ({parameters:,} parameters, {image_size} px). The text
embeddings of the classes are folded in; nothing was trained.""",
    "text-only": """\
The image tower of the CLIP model {model} ({parameters:,} parameters, {image_size} px), with a
linear classifier folded in that `dfkd` trained on texts alone, in PromptStyler's manner.""",
}
"""What it is, by the kind of classifier."""

LEARNED = {
    "student": """\
- It learned from images that a generator made after the teacher's idea of the class names, and
  inherits the errors and biases of the model that labelled them. Try it on your own pictures before
  you rely on it.""",
    "tower": """\
- It has the errors and biases of its CLIP model. Try it on pictures of your own before you rely on
  it.""",
}
LICENCE = {
    "student": """\
The weights are the output of your run; `dfkd` (Apache-2.0) lays no claim to them. They derive from
the weights of the teacher, the labeller, the generator and the student's initial backbone, whose
licences and terms apply: read those before you pass this folder on.""",
    "tower": """\
The weights are those of the CLIP model; `dfkd` (Apache-2.0) lays no claim to them. Its licence and
terms apply: read them before you pass this folder on.""",
}

CARD = """\
# {name}: {candidate}, a classifier of {classes} classes

{subject}

`model.onnx` (opset {opset}) takes `pixels`, float32 [N, 3, {image_size}, {image_size}] RGB in \
[0, 1], which it
normalises itself, and gives {output} `preprocess.json` says how a picture becomes `pixels`, \
`candidate.json` holds all
figures below.

## Use

With this package: `dfkd predict FOLDER picture.png`. In a browser: `try.html`. Without either:

```python
{example}```

It reads what Pillow reads; the command takes PNG, JPEG, WebP and BMP. `preprocess.json` says what
the command does with 16 bits a channel and with very long pictures. The files need onnxruntime 1.14
or later.

## {measure}

{accuracy}

Over {check[images]:,} synthesised images, none of which calibrated int8, the distances of \
`model.onnx`
differ from PyTorch's by at most {check[model.onnx][max_difference]:.2g}, those of \
`model.int8.onnx`
by at most {check[model.int8.onnx][max_difference]:.2g}; {equal[model.onnx]:.2f} % and \
{equal[model.int8.onnx]:.2f} % of the predictions are the same.

## Size and speed

{speed}

Medians of {latency[runs]} runs with one image on one core ({latency[machine]}).

## Where it comes from

{origin}

## Limits

- It knows these {classes} classes and answers with one of them whatever the picture shows.\
{other_classes}
- Probabilities are softmax(cosines / {temperature:.4g}), where a distance is half the square of an
  angle; the temperature is the CLIP model's own (1 / its logit scale) and was fitted to nothing.
- The int8 figures are those of this machine's processor and onnxruntime; others round differently.
{learned}

## Licence

{licence}
"""

MEASURES = {
    "accuracy": """\
In percent, of these files, on `{images[source]}`, which synthesis and training have not read:""",
    "agreement": """\
There are no labelled images, so this is the share, in percent, of {images[source]}, on which
these files give the labeller's answer. It favours the labeller, and tells nothing about real
pictures:""",
}
AVERAGES = {
    "images": "The mean is over domains.",
    "classes": "Each figure is a mean over classes, the last one over domains too.",
}
"""A sentence on what the accuracies are means of, by `evaluation.average`."""
TITLES = {"float32": "`model.onnx`", "int8": "`model.int8.onnx`"}
"""Names of the files in the tables."""


def model_card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: the content of `candidate.json`, without the entry of the card itself.
    """
    check, measure = facts["check"], facts["scored"]["measure"]
    target = "embedding" if "embedding_dim" in facts.get("student", {}) else "distances"
    # A fact that is missing is a `KeyError`, not a blank.
    return CARD.format(
        **facts,
        subject=SUBJECT[facts["classifier"]].format(**facts),
        example=EXAMPLE if target == "distances" else EMBEDDING_EXAMPLE,
        output=OUTPUTS[target].format(**facts),
        other_classes=CLASSES[target],
        measure=measure.capitalize(),
        accuracy=f"{MEASURES[measure].format(images=facts['scored'])}\n\n{_accuracy(facts)}\n\n"
        f"{AVERAGES[facts['scored']['average']]}",
        equal={name: 100 * check[name]["equal_predictions"] for name in (MODEL, INT8)},
        speed=_speed(facts),
        origin=_origin(facts),
        learned=LEARNED[facts["kind"]],
        licence=LICENCE[facts["kind"]],
    )


def _accuracy(facts: Mapping[str, Any]) -> str:
    """A row for each file, with a column for each domain; of the seed that is in the folder."""
    images, rows = facts["scored"]["images"], []
    for precision, file in facts["measured"]["files"].items():
        by_domain = {domain: values[0] for domain, values in file["domains"].items()}
        figures = [*(by_domain.get(domain) for domain in images), file["means"][0]]
        cells = ("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)
        rows.append([TITLES[precision], *cells])
    counts = [str(count) for count in images.values()]
    rows.append(["images", *counts, str(sum(images.values()))])
    return table(["", *map(escape, images), "mean"], rows)


def _speed(facts: Mapping[str, Any]) -> str:
    """A table of sizes and times of both files."""
    files = facts["measured"]["files"].items()
    return table(
        ["", "MB", "ms an image"],
        [[TITLES[name], f"{f['bytes'] / 1e6:.1f}", f"{f['ms']:.1f}"] for name, f in files],
    )


def _origin(facts: Mapping[str, Any]) -> str:
    """A table of what the candidate was made from, with hashes."""
    data, calibration, rows = facts["data"], facts["calibration"], []
    if student := facts.get("student"):
        rows = [
            ["data version", f"`{data['version']}`"],
            ["fingerprint", f"`{data['fingerprint']}`"],
            ["prompt method, seed", f"{student['method']}, {student['seed']}"],
            ["student", f"`{student['folder']}`, sha256 `{student['sha256']}`"],
            ["student's initial weights", f"`{student['weights']}`"],
            ["teacher, which guided the images", escape(str(facts["teacher"]))],
            *(
                ["labelled by", f"{escape(each['model'])}, weights sha256 `{each['sha256']}`"]
                for each in facts["labellers"]
            ),
        ]
    rows += [
        *([f"{escape(r)} sha256", f"`{d}`"] for r, d in sorted(data["weights"].items())),
        [
            "int8 calibration",
            f"{calibration['images']} images of version {calibration['version']}, no others",
        ],
        ["made with", ", ".join(f"{n} {v}" for n, v in sorted(facts["libraries"].items()))],
    ]
    return table(["", ""], rows, names=2)
