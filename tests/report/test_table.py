import numpy as np
import pytest

from dfkd.report.table import table
from dfkd.results import Row, row


def scored(method: str, domain: str, accuracy: float, seed: int = 0) -> Row:
    model = "teacher" if method == "zero-shot" else "student"
    right = round(1000 * accuracy)
    counts = np.array([[right, 1000 - right], [0, 0]], dtype=np.int64)
    return row(model, method, seed, domain, ("cat", "dog"), counts)


def test_the_table_reads_like_the_papers() -> None:
    rows = [
        scored("contrastive", "pixel", 0.4),
        scored("contrastive", "color_emoji", 0.7),
        scored("contrastive", "pixel", 0.5, seed=1),
        scored("contrastive", "color_emoji", 0.8, seed=1),
        scored("zero-shot", "pixel", 0.451),
        scored("zero-shot", "color_emoji", 1.0),
    ]
    assert table(rows) == "\n".join(
        [
            "                    color",
            "accuracy, %         emoji pixel  mean",
            "------------------------------------------",
            "teacher zero-shot   100.0  45.1  72.5",
            "student contrastive  75.0  45.0  60.0 ±7.1",
            "images               1000  1000  2000",
        ]
    )


@pytest.mark.parametrize("domains", [1, 2, 6, 7, 12, 40])
@pytest.mark.parametrize("seeds", [1, 5])
def test_no_line_is_wider_than_a_terminal_and_every_figure_is_there(
    domains: int, seeds: int
) -> None:
    names = [f"somewhat_long_domain-name_{index:02}" for index in range(domains)]
    rows = [
        scored(method, name, index / 100 + 0.001, seed)
        for method in ("zero-shot", "vanilla", "mix", "random", "contrastive")
        for seed in range(seeds)
        for index, name in enumerate(names)
    ]
    text = table(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert all("teacher zero-shot" in block for block in text.split("\n\n"))
    words = text.split()
    for index in range(domains):
        assert words.count(f"{index}.1") >= 5
    assert words.count("mean") == 1


def test_a_domain_that_a_model_was_not_scored_on_is_a_dash() -> None:
    text = table([scored("zero-shot", "ink", 0.5), scored("zero-shot", "oil", 0.5),
                  scored("mix", "ink", 0.25)])  # fmt: skip
    (line,) = (line for line in text.splitlines() if line.startswith("student mix"))
    assert line.split()[2:] == ["25.0", "-", "25.0"]
