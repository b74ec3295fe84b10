"""The files that a study writes: its table in the paper's shape and its figure.

results.json              described in `dfkd.lab.studies.results`
latency.json              described in `dfkd.lab.footprint`; not for a gallery
table.md                  not for a gallery
figure.svg, figure.png    only the PNG for a gallery and a case
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from dfkd.dataset.published import PublishedVersion
from dfkd.evaluation.data import Domains
from dfkd.evaluation.results import Spread
from dfkd.lab import charts
from dfkd.lab.charts import RenderedChart, Scatter, Series
from dfkd.lab.footprint import megabytes
from dfkd.lab.studies.results import FILE, Difference, StudyResults, StudyRow
from dfkd.lab.studies.study import Study, StudyFile
from dfkd.report.contact_sheet import contact_sheet, examples
from dfkd.report.tables import HEADS
from dfkd.storage.base import Storage
from dfkd.utils.images import decode_image
from dfkd.utils.markdown import escape, table

MEAN, AGREEMENT, RECOGNISED, UNSEEN = "mean", "agreement", "recognised", "unseen"
SIZES = ("MB", "ms")


Entry = str | Spread | Difference | float | None
"""Text; our accuracies or their difference (0-1); a number as the paper prints it; or nothing."""


@dataclass(frozen=True)
class Grid:
    """Headings and rows of the same width; the first `names` columns contain text."""

    title: str
    head: tuple[str, ...]
    names: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    """Sentences below the table."""


def format_entry(cell: Entry) -> str:
    """A cell as text: our figures in percent with one decimal and the deviation, the paper's with
    two.
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float):
        return f"{cell:.2f}"
    if isinstance(cell, Difference):
        # Percentage points with sign and interval: `+1.5 (-0.3 to +3.3)`.
        if cell.low is None or cell.high is None:
            return f"{100 * cell.mean:+.1f}"
        return f"{100 * cell.mean:+.1f} ({100 * cell.low:+.1f} to {100 * cell.high:+.1f})"
    deviates = "" if cell["std"] is None else f" ± {100 * cell['std']:.1f}"
    return f"{100 * cell['mean']:.1f}{deviates}"


def markdown(grid: Grid) -> str:
    """A heading, the table, and the notes as a list."""
    rows = [[escape(format_entry(cell)) for cell in row] for row in grid.rows]
    text = [f"# {escape(grid.title)}", "", table([*map(escape, grid.head)], rows, grid.names)]
    if grid.notes:
        text += ["", *(f"- {escape(note)}" for note in grid.notes)]
    return "\n".join(text) + "\n"


def write(
    storage: Storage,
    study: Study,
    results: StudyResults,
    versions: Mapping[str, PublishedVersion],
    data: Domains | None,
    ms: Mapping[str, float],
) -> str:
    """Write all files of a study with at least one row; returns the location of the main file.

    Args:
        versions: the data set of each row; used by a gallery and a case.
        data: the evaluation set; None for a gallery.
        ms: milliseconds for one image on one core, by the row's label.

    Raises:
        CorruptionError: a shard whose images are shown differs from what was published.
    """
    described = study.described
    # First, because all other files can be made from the results again.
    storage.put(FILE, results.encode())
    main = FILE
    if study.trains:
        storage.put("table.md", markdown(grid(described, results, ms)).encode())
        main = "table.md"
    drawn = chart(described, results)
    if drawn is not None:
        storage.put("figure.svg", drawn.svg)
        storage.put("figure.png", drawn.png)
    if described.pictures:
        storage.put("figure.png", picture_sheet(study, versions, data))
        main = main if study.trains else "figure.png"
    return storage.location(main)


def grid(described: StudyFile, results: StudyResults, ms: Mapping[str, float]) -> Grid:
    """The table of a study with students.

    Args:
        ms: milliseconds for one image on one core, by the row's label.
    """
    axes = tuple(axis.name for axis in described.chosen_axes)
    # Each row with the entries of its names and accuracies.
    lines: list[tuple[StudyRow, tuple[Entry, ...]]] = []
    if described.columns == "classes":
        # A column for each class and their mean, and a row for each domain.
        names, head = ("domain", *axes), (*results.classes, MEAN)
        for domain in results.domains:
            for row in results.rows:
                entries = tuple(row.of_class(domain, name) for name in results.classes)
                lines.append((row, (domain, *row.names, *entries, row.class_mean(domain))))
    else:
        names, head = axes, (*results.domains, MEAN)
        for row in results.rows:
            if described.kind == "case" and described.pictures:
                (name,) = described.pictures.classes
                cells = [row.of_class(domain, name) for domain in results.domains]
                mean = row.of_class_everywhere(name)
            else:
                cells, mean = [row.domains[domain] for domain in results.domains], row.mean
            lines.append((row, (*row.names, *cells, mean)))
    differences = _differences(described, results)
    # These columns are there only if a row has a figure, or most tables would have empty ones.
    measured = [
        name
        for name in (AGREEMENT, RECOGNISED, UNSEEN)
        if any(getattr(row, name) for row in results.rows)
    ]
    compared = (f"vs {described.compare}",) if differences else ()
    papers = (f"{name} ({each.data}, paper)" for each in described.paper for name in each.columns)

    def further(row: StudyRow) -> Iterator[Entry]:
        """Yield the entries of a row behind its accuracies, as in the head below."""
        yield from (getattr(row, name) for name in measured)
        if compared:
            yield differences.get(row.label)
        yield None if row.parameters is None else f"{megabytes(row.parameters):.1f}"
        yield f"{ms[row.label]:.1f}" if row.label in ms else None
        for paper in described.paper:
            # The paper has no numbers for rows that only this study has.
            yield from paper.rows.get(row.label, (None,) * len(paper.columns))

    return Grid(
        title=described.title,
        head=(*names, *head, *measured, *compared, *SIZES, *papers),
        names=len(names),
        rows=tuple((*entries, *further(row)) for row, entries in lines),
        notes=tuple(_notes(described, results)),
    )


def _differences(described: StudyFile, results: StudyResults) -> dict[str, Difference]:
    """Paired difference of each student row from its reference (`compare`), by label."""
    # The figures of these tables are of single classes, and the differences are of all.
    if described.columns == "classes" or described.kind == "case":
        return {}
    # Only students have a value of each axis; the other rows have a name instead.
    students = {row.names: row for row in results.rows if row.model == "student"}
    # A row's reference has the same names, except that `compare` replaces the one on its axis.
    axes = [described.compare in axis.values for axis in described.chosen_axes]
    differences = {}
    for names, row in students.items():
        other = tuple(
            described.compare if compared else name
            for name, compared in zip(names, axes, strict=True)
        )
        if other in students and other != names:
            differences[row.label] = row.against(students[other], results.average)
    return {label: each for label, each in differences.items() if each}


def _notes(described: StudyFile, results: StudyResults) -> Iterator[str]:
    """Yield the notes below the table."""
    # What the deviations are over: students of one data set, or whole runs, or seeds if rows differ
    # in that. A row with a single cell has no deviation, so it says nothing about it.
    repeated = [row for row in results.rows if row.model == "student" and len(row.cells) > 1]
    count, over = max((len(row.cells) for row in repeated), default=0), ""
    if repeated:
        over = f", mean ± standard deviation over {count} seeds"
        if all(row.data_sets == 1 for row in repeated):
            over = f", mean ± standard deviation over {count} students of one data set"
        elif all(row.data_sets == len(row.cells) for row in repeated):
            over = f", mean ± standard deviation over {count} whole runs (data set and student)"
    of = f" of {described.pictures.classes[0]}" if described.pictures else ""
    scored = ", ".join(f"{name} {images}" for name, images in results.domains.items())
    by_class = results.average == "classes" and not described.pictures
    kind = "Mean accuracy of the classes" if by_class else "Accuracy"
    places = "the classes with images there" if described.columns == "classes" else "domains"
    yield f"{kind}{of} in percent{over}. Images scored: {scored}."
    yield f"{MEAN}: over {places}, each with the same weight."
    # What each column beside the accuracies means.
    yield (
        "MB: size of the model's parameters in float32. ms: one image on one core of the "
        "machine that wrote this table."
    )
    if results.size == "quick":
        yield "Made with --quick: it shows that the study runs, and measures nothing."
    if differences := _differences(described, results):
        yield (
            f"vs {described.compare}: the mean difference from {described.compare} over the seeds "
            "that both rows have, with its 95 % interval (Student's t)"
            + (f", not adjusted for {len(differences)} rows." if len(differences) > 1 else ".")
        )
    if any(row.agreement for row in results.rows):
        yield (
            f"{AGREEMENT}: share of synthetic images, which no student learned from, that student "
            "and teacher put into the same class."
        )
    if results.judge:
        named = results.judge_accuracy
        yield (
            f"{RECOGNISED}: share of a row's synthesised images that a classifier which guided "
            f"no synthesis (sha256 {results.judge[:12]}) puts into the class they were made for."
            + ("" if named is None else f" It names {100 * named:.1f} % of the evaluation images.")
        )
    if any(row.unseen for row in results.rows):
        yield (
            f"{UNSEEN}: accuracy on the images of all domains together, of classes that the "
            f"distillation did not show ({', '.join(described.unseen)}), of models whose classes "
            "can be replaced."
        )
    for paper in described.paper:
        yield (
            f"({paper.data}, paper): printed in {paper.of} of the paper, about its own data, "
            "teacher and students; not part of any mean here."
        )
    yield from described.notes
    yield from results.notes
    # Rows that lack seeds of the study, and failed cells.
    for row in results.rows:
        if row.model == "student" and len(row.cells) < len(results.seeds):
            yield f"{row.label}: {len(row.cells)} of {len(results.seeds)} seeds."
    for label, reason in results.failed.items():
        yield f"Missing: {label} ({reason})."


def chart(described: StudyFile, results: StudyResults) -> RenderedChart | None:
    """The drawn figure of a curve, bars or an embedding; None for other kinds."""
    y = HEADS[results.average]
    if described.kind == "curve":
        lines = _lines(described, results)
        mean = len(described.chosen_axes) == 1
        return charts.curve(described.title, described.x, y, lines, mean) if lines else None
    if described.kind == "bars":
        groups = []
        for row in results.rows:
            bars = [(name, row.domains[name]) for name in results.domains]
            groups.append(Series(row.label, (*bars, *([(MEAN, row.mean)] if row.mean else []))))
        return charts.bars(described.title, y, groups)
    if described.kind == "embedding" and results.maps:
        # The maps of each row, before and after training.
        rows: dict[str, list[Scatter]] = {}
        for each in results.maps:
            when = f"after {each.shots} shots" if each.shots else "before"
            name = f"{each.row}, {when} (silhouette {each.silhouette:.2f})"
            shown = Scatter(name, each.points, each.classes, each.taught)
            rows.setdefault(each.row, []).append(shown)
        return charts.maps(described.title, list(rows.values()))
    return None


def _lines(described: StudyFile, results: StudyResults) -> list[Series]:
    """Lines of a curve. With one axis: the mean and each domain. With several: the mean for each
    combination of the other axes' values.
    """
    x_position = [axis.name for axis in described.chosen_axes].index(described.x)
    rows = [row for row in results.rows if row.model == "student"]
    groups: dict[str, list[StudyRow]] = {}
    for row in rows:
        others = row.names[:x_position] + row.names[x_position + 1 :]
        groups.setdefault(" ".join(others), []).append(row)
    # With several axes, a line for each domain too would make a chart that nobody can read.
    if len(described.chosen_axes) > 1:
        return [_line(name, x_position, group, None) for name, group in groups.items()]
    return [
        _line(name or MEAN, x_position, rows, name) for name in (None, *results.domains) if rows
    ]


def _line(name: str, x_position: int, rows: Sequence[StudyRow], domain: str | None) -> Series:
    """A line of a curve: a row's mean over domains, or its accuracy on one domain."""
    values = [
        (float(row.names[x_position]), row.domains[domain] if domain else row.mean) for row in rows
    ]
    return Series(name, tuple((x, spread) for x, spread in values if spread))


def picture_sheet(
    study: Study, versions: Mapping[str, PublishedVersion], data: Domains | None
) -> bytes:
    """The pictures as a PNG. A gallery shows classes in rows and methods in columns; a case
    shows one class, with synthesised rows above the real domains.
    """
    described, shown = study.described, study.described.pictures
    if shown is None:
        raise ValueError("only a gallery and a case have pictures")
    positions = [study.manifest.classes.index(name) for name in shown.classes]
    examples_of = {
        row: examples(version, shown.count, positions) for row, version in versions.items()
    }
    footer = ", ".join(f"{row} version {version.id}" for row, version in versions.items())
    # A gallery has no evaluation data, so it has no real images to show beside its own.
    if data is None:
        return contact_sheet(described.title, shown.classes, examples_of, footer)
    # The first images of the class in each domain as students see them, if readable.
    size, real = study.manifest.synthesis.image_size, dict[str, list[Image.Image]]()
    for name in data.names:
        items = [i for i in data.items if i.domain == name and i.class_index == positions[0]]
        real[f"{name} (real)"] = []
        for item in items[: shown.count]:
            with contextlib.suppress(OSError, ValueError):
                image = Image.fromarray(decode_image(item.read(), size))
                real[f"{name} (real)"].append(image)
    rows = {row: images for row, (images,) in examples_of.items()} | real
    block = {shown.classes[0]: list(rows.values())}
    return contact_sheet(described.title, list(rows), block, footer)
