from collections.abc import Sequence
from typing import Any

import numpy as np

from dfkd.config.distillation import Average
from dfkd.evaluation.results import ResultRow, row, summarise
from dfkd.report.tables import table


def scored(method: str, domain: str, accuracy: float, seed: int = 0) -> ResultRow:
    model = "teacher" if method == "zero-shot" else "student"
    right = round(1000 * accuracy)
    counts = np.array([[right, 1000 - right], [0, 0]], dtype=np.int64)
    return row(model, method, seed, domain, ("cat", "dog"), counts)


def results(
    rows: list[ResultRow],
    average: Average = "images",
    classes: Sequence[str] = ("cat", "dog"),
    domains: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "rows": rows,
        "classes": list(classes),
        "average": average,
        "data": {"domains": list(domains)},
        "summary": summarise(rows, average),
        "parameters": {"teacher": 2_900_000, "student": 11_200_000},
    }


def test_the_table_reads_like_the_papers() -> None:
    rows = [
        scored("contrastive", "pixel", 0.4),
        scored("contrastive", "color_emoji", 0.7),
        scored("contrastive", "pixel", 0.5, seed=1),
        scored("contrastive", "color_emoji", 0.8, seed=1),
        scored("zero-shot", "pixel", 0.451),
        scored("zero-shot", "color_emoji", 1.0),
    ]
    assert table(results(rows)).splitlines() == [
        "               teacher     student",
        "accuracy, %  zero-shot contrastive images",
        "-----------------------------------------",
        "color_emoji      100.0        75.0   1000",
        "pixel             45.1        45.0   1000",
        "mean              72.5        60.0   2000",
        "± over seeds         -         7.1",
    ]


def test_a_domain_that_a_model_was_not_scored_on_is_a_dash() -> None:
    rows = [scored("zero-shot", "ink", 0.5), scored("zero-shot", "oil", 0.5)]
    text = table(results([*rows, scored("mix", "ink", 0.25)]))
    words = [line.split() for line in text.splitlines()]
    assert words[3:5] == [["ink", "50.0", "25.0", "1000"], ["oil", "50.0", "-", "1000"]]


def test_domains_stand_in_the_order_of_the_data() -> None:
    rows = [scored("zero-shot", name, 0.5) for name in ("cartoon", "photo", "sketch")]
    text = table(results(rows, domains=("sketch", "photo")))
    names = [line.partition(" ")[0] for line in text.splitlines()[3:]]
    assert names == ["sketch", "photo", "cartoon", "mean"]


VISDA = ("plane", "bcycl", "bus", "car", "horse", "knife", "mcycl", "person", "plant", "sktbrd",
         "train", "truck")  # fmt: skip
CLIP = {
    "synthetic": (92.92, 83.45, 91.69, 69.01, 99.58, 68.57, 99.83, 99.42, 99.66, 84.46, 83.18,
                  56.77),
    "real": (87.64, 85.34, 81.04, 89.16, 90.12, 77.62, 86.76, 67.78, 97.29, 54.47, 91.55, 76.64),
}  # fmt: skip
"""The teacher's accuracy on each class in the paper's Table 4."""


def table_4(domain: str) -> ResultRow:
    """The counts of a line of the table, with 10,000 images of plane and 1,000 of all others."""
    counts = np.zeros((12, 12), dtype=np.int64)
    for index, percent in enumerate(CLIP[domain]):
        images = 10_000 if index == 0 else 1_000
        right = round(images * percent / 100)
        counts[index, index], counts[index, index - 1] = right, images - right
    return row("teacher", "zero-shot", 0, domain, VISDA, counts)


def test_class_means_are_those_of_the_papers_table_4() -> None:
    rows = [table_4(name) for name in CLIP]
    text = table(results(rows, "classes", VISDA, domains=("synthetic", "real")))
    assert text.splitlines() == [
        "                teacher",
        "class mean, % zero-shot images",
        "------------------------------",
        "synthetic          85.7  21000",
        "real               82.1  21000",
        "mean               83.9  42000",
    ]
    assert "85.7" not in table(results(rows, "images", VISDA))
