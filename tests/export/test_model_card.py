import re
from typing import Any

import pytest

from dfkd.export.model_card import model_card

FACTS: dict[str, Any] = {
    "name": "tiny",
    "candidate": "resnet18",
    "kind": "student",
    "classifier": "distilled",
    "model": "resnet18",
    "parameters": 1234567,
    "image_size": 64,
    "classes": 3,
    "opset": 18,
    "temperature": 0.0571,
    "student": {
        "method": "mix",
        "seed": 4,
        "folder": "mix-s4-abc",
        "sha256": "cafe",
        "weights": "IMAGENET1K_V1",
    },
    "data": {
        "version": "v1",
        "fingerprint": "f1",
        "images": 2880,
        "weights": {"teacher.weights": "beef", "generator.vqgan.weights": "ace"},
    },
    "teacher": "a|b",
    "labellers": [{"model": "c|d", "template": "A {class}", "sha256": "fade"}],
    "calibration": {"images": 256, "version": "v1"},
    "scored": {
        "measure": "accuracy",
        "average": "images",
        "source": "folder {x}",
        "images": {"flat": 30, "ink": 10},
    },
    "measured": {
        "files": {
            "float32": {
                "bytes": 44_700_000,
                "ms": 6.0,
                "means": [0.375, 0.9],
                "domains": {"flat": [0.5, 0.9], "ink": [0.25, 0.9]},
            },
            "int8": {
                "bytes": 11_300_000,
                "ms": 1.51,
                "means": [0.3, 0.9],
                "domains": {"flat": [0.4, 0.9], "ink": [0.2, 0.9]},
            },
        }
    },
    "check": {
        "images": 40,
        "model.onnx": {"max_difference": 1.5e-6, "equal_predictions": 1.0},
        "model.int8.onnx": {"max_difference": 0.07, "equal_predictions": 0.975},
    },
    "latency": {"runs": 21, "machine": "Some CPU"},
    "libraries": {"torch": "2", "onnx": "1"},
}


def squeezed(**scored: Any) -> str:
    """The card without the padding of its tables, with other facts of the scored images."""
    return re.sub(" +", " ", model_card(FACTS | {"scored": FACTS["scored"] | scored}))


def test_without_labelled_images_the_card_says_what_is_measured_instead() -> None:
    card = squeezed(measure="agreement")
    assert "## Agreement" in card
    assert "It favours the labeller" in card


@pytest.mark.parametrize("classifier", ["zero-shot", "text-only"])
def test_a_tower_learned_from_no_image(classifier: str) -> None:
    facts = FACTS | {"kind": "tower", "classifier": classifier, "model": "RN50"}
    del facts["student"]
    card = model_card(facts | {"data": {"weights": {"teacher.weights": "beef"}}})
    assert "The image tower of the CLIP model RN50 (1,234,567 parameters, 64 px)" in card
    assert "synthesised images; distillation" not in card
    assert "prompt method" not in card


def test_every_figure_is_that_of_the_facts() -> None:
    card = squeezed()
    for line in (
        "A resnet18 (1,234,567 parameters, 64 px)",
        "on 2,880 synthesised images; distillation saw no real one.",
        "`folder {x}`, which synthesis and training have not read",
        "Over 40 synthesised images, none of which calibrated int8, the distances",
        "| | flat | ink | mean |",
        "| `model.onnx` | 50.0 | 25.0 | 37.5 |",
        "| images | 30 | 10 | 40 |",
        "at most 1.5e-06",
        "100.00 % and 97.50 % of the predictions",
        "| `model.int8.onnx` | 11.3 | 1.5 |",
        r"| teacher, which guided the images | a\|b |",
        r"| labelled by | c\|d, weights sha256 `fade` |",
        "| student's initial weights | `IMAGENET1K_V1` |",
        "| teacher.weights sha256 | `beef` |",
        "| generator.vqgan.weights sha256 | `ace` |",
        "softmax(cosines / 0.0571)",
        "opset 18",
        "v1",
        "f1",
        "## Limits",
        "## Licence",
    ):
        assert line in card, line


def test_names_of_strangers_are_no_markup() -> None:
    card = squeezed(images=dict.fromkeys(("photo <b>x", "`ink` *a*", "art_painting"), 10))
    head = r"| | photo \<b\>x | \`ink\` \*a\* | art_painting | mean |"
    assert head in card
    foreign = FACTS | {"teacher": "/models/<i>/_b"}
    row = r"| teacher, which guided the images | /models/\<i\>/\_b |"
    assert row in re.sub(" +", " ", model_card(foreign))


def test_means_over_classes_are_called_so() -> None:
    assert "The mean is over domains.\n" in squeezed()
    told = "Each figure is a mean over classes, the last one over domains too."
    assert told in squeezed(average="classes")
