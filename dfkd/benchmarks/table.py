"""The figures of a record as lines of text, and those of several records as a page."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HEAD = ("figure", "median", "least", "most", "unit", "of its limit", "of its peer")
UNITS = ("", "k", "M", "G", "T", "P")


def table(results: Mapping[str, Any]) -> list[str]:
    """A line for each of the `figures` of results, below a head; nothing where there are none."""
    figures = results.get("figures", ())
    if not figures:
        return []
    rows = [HEAD, *(tuple(_row(figure)) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if HEAD[place] in ("figure", "unit", *HEAD[5:]) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: for each record how it was measured, and a table of its figures."""
    lines: list[str] = []
    for record in records:
        machine = record["machine"]
        lines += [
            f"## {record['benchmark']}",
            "",
            f"`{record['command']}`, {record['date']}, {machine['processor']} with "
            f"{machine['cpus']} CPUs, torch {record['environment']['torch']}, "
            f"most memory of all processes {scaled(record['results']['memory']['tree_most'])}B",
            "",
            f"| {' | '.join(HEAD)} |",
            f"|---|{'---:|' * 3}{'---|' * 3}",
            *(f"| {' | '.join(_row(each))} |" for each in record["results"].get("figures", ())),
            "",
            *_profile(record["results"].get("profile", {})),
        ]
    return "\n".join(lines)


def _profile(calls: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What share of each call's time goes where; the operations of the first lead."""
    if not calls:
        return
    yield f"| share of the time | {' | '.join(calls)} |"
    yield f"|---|{'---:|' * len(calls)}"
    for name in dict.fromkeys(name for spent in calls.values() for name in spent):
        shares = (spent.get(name, 0.0) / sum(spent.values()) for spent in calls.values())
        yield f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"
    yield ""


def _row(figure: Mapping[str, Any]) -> Iterator[str]:
    yield figure["name"]
    for key in ("median", "least", "most"):
        yield scaled(figure[key])
    yield figure["unit"]
    yield f"{figure['share']:.0%} of {figure['limit']}" if "share" in figure else "-"
    yield f"{figure['ratio']:.2f} x {figure['peer']}" if "ratio" in figure else "-"


def scaled(value: float) -> str:
    """Three digits and a prefix: 12.3 k."""
    power = 0
    while abs(value) >= 1000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {UNITS[power]}".strip()
