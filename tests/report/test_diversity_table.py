import json
from pathlib import Path

import pytest

from dfkd.report.diversity import Diversity, diversities, rank_correlation, read, table
from dfkd.report.facts import collect
from dfkd.report.page import write_stored
from dfkd.report.wording import share
from dfkd.storage.local import open_storage
from tests.helpers.finished_run import finished


def of(method: str, cosine: float | None, accuracy: float | None) -> Diversity:
    return Diversity(method, cosine, 7.25, 0.5, 12.0, 0.25, 0.9, accuracy, None)


def test_rank_correlation_is_spearmans() -> None:
    rows = [of("a", 0.1, 0.5), of("b", 0.4, 0.6), of("c", 0.2, 0.8), of("d", 0.9, 0.7)]
    # ranks 0 2 1 3 against 0 1 3 2: 1 - 6 * (0 + 1 + 4 + 1) / (4 * 15)
    assert rank_correlation(rows, "prompt_cosine") == pytest.approx(0.4)
    assert rank_correlation(rows, "prompt_vendi") is None  # all the same: no order
    assert rank_correlation(rows[:2], "prompt_cosine") is None


def test_equal_values_share_a_rank() -> None:
    rows = [of("a", 0.1, 0.5), of("b", 0.1, 0.6), of("c", 0.2, 0.8)]
    # ranks 0.5 0.5 2 against 0 1 2
    assert rank_correlation(rows, "prompt_cosine") == pytest.approx(3**0.5 / 2)


def test_unknown_measures_are_left_out() -> None:
    rows = [of("a", 0.1, 0.5), of("b", None, 0.6), of("c", 0.2, None)]
    assert rank_correlation(rows, "prompt_cosine") is None
    third = table(rows).splitlines()[4]
    assert third.split() == ["b", "-", "7.2", "0.500", "12.0", "25.0", "90.0", "60.0", "-"]


def test_a_run_says_what_its_report_shows(tmp_path: Path) -> None:
    storage = open_storage(finished(tmp_path).storage.root)
    facts = collect(storage)
    html = Path(write_stored(storage)).read_text()
    rows = read(storage)
    assert rows == diversities(facts)
    vanilla, contrastive = rows
    assert vanilla.prompt_cosine is not None
    assert contrastive.prompt_cosine is not None
    assert vanilla.prompt_cosine > contrastive.prompt_cosine
    scores = {s.label: s.summary["mean"] for s in facts.students}
    assert [row.accuracy for row in rows] == [scores["vanilla"], scores["contrastive"]]
    assert None not in (vanilla.own_class, vanilla.accuracy)
    shown = (f'<td class="n">{share(value)}' for value in (vanilla.own_class, vanilla.accuracy))
    assert "</td>".join(shown) in html
    tree = json.loads(storage.get("diversity.json"))
    assert tree["rank_correlation"]["prompt_cosine"] is None  # of two methods
    lines = table(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("rank corr.")
