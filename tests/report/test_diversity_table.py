import json
from dataclasses import asdict
from pathlib import Path

from dfkd.report.diversity import FILE, Diversity, diversities, table
from dfkd.report.facts import collect
from dfkd.report.page import write_stored
from dfkd.report.wording import share
from dfkd.storage.local import open_storage
from tests.helpers.finished_run import finished


def of(method: str, cosine: float | None, accuracy: float | None) -> Diversity:
    return Diversity(method, cosine, 7.25, 0.5, 12.0, 0.25, 0.9, accuracy, None)


def test_an_unknown_measure_is_a_dash() -> None:
    rows = [of("a", 0.1, 0.5), of("b", None, 0.6), of("c", 0.2, None)]
    third = table(rows).splitlines()[4]
    assert third.split() == ["b", "-", "7.2", "0.500", "12.0", "25.0", "90.0", "60.0", "-"]


def test_a_run_says_what_its_report_shows(tmp_path: Path) -> None:
    storage = open_storage(finished(tmp_path).storage.root)
    facts = collect(storage)
    rows: list[Diversity] = []
    html = Path(write_stored(storage, rows.extend)).read_text()
    assert rows == diversities(facts)
    assert json.loads(storage.get(FILE))["rows"] == [asdict(row) for row in rows]
    vanilla, contrastive = rows
    assert vanilla.prompt_cosine is not None
    assert contrastive.prompt_cosine is not None
    assert vanilla.prompt_cosine > contrastive.prompt_cosine
    scores = {s.label: s.summary["mean"] for s in facts.students}
    assert [row.accuracy for row in rows] == [scores["vanilla"], scores["contrastive"]]
    assert None not in (vanilla.own_class, vanilla.accuracy)
    shown = (f'<td class="n">{share(value)}' for value in (vanilla.own_class, vanilla.accuracy))
    assert "</td>".join(shown) in html
    assert max(map(len, table(rows).splitlines())) <= 80
