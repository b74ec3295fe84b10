import pytest
from shots import results

from dfkd.report.fewshot_table import markdown, table


def test_the_table_has_a_line_for_each_curve_and_a_column_for_each_k() -> None:
    assert table(results()) == "\n".join(
        [
            "few-shot accuracy, %, mean of 2 domains",
            "images a class          0          1         16",
            "-----------------------------------------------",
            "untouched       11.0 ±0.7  12.0 ±0.7  27.0 ±0.7",
            "student                 -  22.0 ±0.7  37.0 ±0.7",
            "library                 -  32.0 ±0.7  47.0 ±0.7",
            "scratch                 -  42.0 ±0.7  57.0 ±0.7",
            "gain                    - +10.0 ±0.0 +10.0 ±0.0",
            "trained on              0          4         64",
            "tested on            4000       4000       4000",
        ]
    )


@pytest.mark.parametrize("seeds", [(0,), tuple(range(5))])
@pytest.mark.parametrize("domains", [1, 9])
def test_no_line_is_wider_than_a_terminal_and_every_k_is_there(
    domains: int, seeds: tuple[int, ...]
) -> None:
    shots = tuple(range(1, 20))
    names = [f"a_long_domain_name_{number}" for number in range(domains)]
    text = table(results(names, shots, seeds))
    assert max(map(len, text.splitlines())) <= 80
    assert all(block.count("student") == 1 for block in text.split("\n\n"))
    heads = [line.split()[3:] for line in text.splitlines() if line.startswith("images a class")]
    assert [int(k) for head in heads for k in head] == [0, *shots]


def test_the_paper_s_shots_fit_one_block() -> None:
    text = table(results(shots=(1, 2, 4, 8, 16)))
    assert "\n\n" not in text
    assert max(map(len, text.splitlines())) == 80


def test_markdown_has_each_domain_and_the_notes() -> None:
    text = markdown(results(notes=["domain ink: too few"]))
    assert "| library | - | 31.5 ±0.7 | 46.5 ±0.7 |\n" in text.partition("## ink")[2]
    assert "| library | - | 32.5 ±0.7 | 47.5 ±0.7 |\n" in text.partition("## oil")[2]
    assert "- student: distilled, mix images, seed 0\n- library: weights IMAGENET1K\\_V1\n" in text
    assert text.endswith("## Notes\n\n- domain ink: too few\n")


def test_one_domain_is_told_once() -> None:
    text = markdown(results(["ink"], seeds=[3]))
    assert text.count("| student | - | 24.0 | 39.0 |") == 1
    assert text.count("| gain | - | +10.0 | +10.0 |") == 1
    assert "## One domain" in text


def test_names_from_a_disk_are_text_in_markdown() -> None:
    text = markdown(results(["a|b\n# <i>*c*", "oil"]))
    assert "## a\\|b \\# \\<i\\>\\*c\\*\n" in text
