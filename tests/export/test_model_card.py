import re
from typing import Any

from dfkd.export.model_card import model_card

SCORES = {"domains": {"flat": 0.5, "ink": 0.25}, "mean": 0.375}
FACTS: dict[str, Any] = {
    "name": "tiny",
    "classes": 3,
    "opset": 18,
    "temperature": 0.0571,
    "student": {
        "architecture": "resnet18",
        "image_size": 64,
        "parameters": 1234567,
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
    "teacher": {"model": "a|b", "image_size": 224, "bytes": 350_000_000},
    "calibration": {"images": 256},
    "evaluation": {
        "source": "folder {x}",
        "images": {"flat": 30, "ink": 10},
        "average": "images",
        "accuracy": {"teacher": SCORES, "student": SCORES},
    },
    "check": {
        "images": 40,
        "model.onnx": {"max_difference": 1.5e-6, "equal_predictions": 1.0},
        "model.int8.onnx": {"max_difference": 0.07, "equal_predictions": 0.975},
    },
    "latency": {
        "ms": {"teacher": 80.04, "onnx": 6.0, "int8": 1.51, "torch": 9.0},
        "runs": 21,
        "machine": "Some CPU",
    },
    "files": {"model.onnx": {"bytes": 44_700_000}, "model.int8.onnx": {"bytes": 11_300_000}},
    "libraries": {"torch": "2", "onnx": "1"},
}


def squeezed(**evaluation: Any) -> str:
    """The card without the padding of its tables, with other facts of the evaluation."""
    facts = FACTS | {"evaluation": FACTS["evaluation"] | evaluation}
    return re.sub(" +", " ", model_card(facts))


def test_a_run_without_labelled_images_has_no_accuracy() -> None:
    card = model_card(FACTS | {"evaluation": None})
    assert "Not measured, because the run has no labelled images" in card


def test_every_figure_is_that_of_the_facts() -> None:
    card = squeezed()
    for line in (
        "A resnet18 (1,234,567 parameters, 64 px)",
        "on 2,880 synthesised images; distillation saw no real one.",
        "`folder {x}`, which neither synthesis nor distillation has read",
        "Over 40 synthesised images, none of which calibrated int8, the distances",
        "| | flat | ink | mean |",
        "| teacher zero-shot | 50.0 | 25.0 | 37.5 |",
        "| images | 30 | 10 | 40 |",
        "at most 1.5e-06",
        "100.00 % and 97.50 % of the predictions",
        "| teacher's image tower, PyTorch, 224 px | 350.0 | 80.0 |",
        "| `model.int8.onnx` | 11.3 | 1.5 |",
        r"| teacher | a\|b |",
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
    foreign = FACTS | {"teacher": FACTS["teacher"] | {"model": "/models/<i>/_b"}}
    assert r"| teacher | /models/\<i\>/\_b |" in re.sub(" +", " ", model_card(foreign))


def test_means_over_classes_are_called_so() -> None:
    assert "The mean is over domains.\n" in squeezed()
    told = "Each figure is a mean over classes, the last one over domains too."
    assert told in squeezed(average="classes")


def test_a_teacher_that_was_not_scored_has_no_line() -> None:
    card = squeezed(accuracy={"student": SCORES})
    assert "teacher zero-shot" not in card
    assert "| student, PyTorch | 50.0" in card
