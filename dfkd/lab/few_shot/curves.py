"""Few-shot accuracies as Markdown, and as the curves of Fig. 5."""

from collections.abc import Mapping, Sequence

from dfkd.evaluation.results import Spread
from dfkd.lab.few_shot.results import CURVES, Curve, FewShotResults, gains
from dfkd.report.figures import RenderedChart, Series
from dfkd.report.figures import curve as curve_chart
from dfkd.report.tables import HEADS
from dfkd.utils.markdown import escape, table

LABELS = ("images a class", "gain", "trained on", "tested on")
"""Labels of the rows that are not curves."""
AXIS = "training images of each class (0: before any training)"

Bands = Mapping[tuple[Curve, int], Spread]
"""Mean and deviation by curve and number of shots."""
Grid = list[list[str]]
"""Rows of cells, the label first: shots, each curve, gains, and two rows of image counts."""


def markdown(results: FewShotResults) -> str:
    """Mean accuracy over domains in percent, the same of each domain, and notes, as Markdown.

    A table has a column for each number of shots. Its last rows are the gain of training over the
    untrained student, and how many images one seed's trainings used and were tested on.
    """
    ticks, names = _ticks(results), results.data.domains
    means = _grid(results, _bands(results), ticks, names)
    parts = [
        f"# Few-shot {HEADS[results.average]}, of {escape(results.architecture)}",
        "Mean and standard deviation over seeds: each draws the labelled images and random weights "
        "anew and, if several students are named below, takes another one. 0 images is before any "
        "training. Figures of one column share their test images, those of two columns do not. "
        "The gain is what training adds to the student, with the standard deviation of that "
        "difference.",
        "\n".join(f"- {c}: {escape(results.curves[c])}" for c in CURVES if c in results.curves),
        f"## {escape(names[0]) if len(names) == 1 else f'Mean of {len(names)} domains'}",
        table(means[0], means[1:]),
    ]
    for name in names if len(names) > 1 else ():
        grid = _grid(results, _bands(results, name), ticks, [name])
        parts += [f"## {escape(name)}", table(grid[0], grid[1:])]
    remarks = [*results.data.notes, *(f"unreadable: {line}" for line in results.data.unreadable)]
    if remarks:
        parts += ["## Notes", "\n".join(f"- {escape(remark)}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def _ticks(results: FewShotResults) -> list[int]:
    """The numbers of shots, rising."""
    return sorted({point.shots for point in results.summary})


def _bands(results: FewShotResults, domain: str | None = None) -> Bands:
    """The accuracies on a domain, or the means over domains for None."""
    return {
        (point.curve, point.shots): (
            Spread(mean=point.mean, std=point.std) if domain is None else point.domains[domain]
        )
        for point in results.summary
    }


def _averaged_over(names: Sequence[str]) -> str:
    """What the means are over."""
    return names[0] if len(names) == 1 else f"mean of {len(names)} domains"


def _grid(
    results: FewShotResults, bands: Bands, ticks: Sequence[int], names: Sequence[str]
) -> Grid:
    """The cells of a table, with one column for each of `ticks`.

    Args:
        bands: figures of the curves.
        ticks: numbers of shots.
        names: domains that the figures are over.
    """
    rows = [row for row in results.rows if row.domain in names]
    # Every curve has the largest number of shots, but only one has 0.
    curves = [curve for curve, shots in bands if shots == max(ticks)]
    grid = [[curve, *(_figure(bands.get((curve, shots))) for shots in ticks)] for curve in curves]
    if added := gains(rows, results.average):
        grid.append([LABELS[1], *(_figure(added.get(shots), sign="+") for shots in ticks)])
    # All seeds use the same number of images, so those of one seed are counted.
    for label, trained in ((LABELS[2], True), (LABELS[3], False)):
        images = {
            (row.shots, row.domain): sum(row.trained if trained else row.tested)
            for row in rows
            if row.seed == rows[0].seed
        }
        counts = (sum(images[shots, name] for name in names) for shots in ticks)
        grid.append([label, *map(str, counts)])
    return [[LABELS[0], *map(str, ticks)], *grid]


def _figure(figure: Spread | None, sign: str = "") -> str:
    """Mean and deviation in percent; a dash for None.

    Args:
        sign: "+" writes the sign of a positive mean too.
    """
    if figure is None:
        return "-"
    deviation = "" if figure["std"] is None else f" ±{100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:{sign}.1f}{deviation}"


def picture(results: FewShotResults) -> RenderedChart:
    """The means over domains as a line for each curve, with bars of ± one standard deviation."""
    figures, kind = _bands(results), HEADS[results.average]
    series = [
        Series(
            f"{curve}: {results.curves[curve]}",
            tuple((shots, figure) for (name, shots), figure in figures.items() if name == curve),
        )
        for curve in CURVES
        if curve in results.curves
    ]
    title = f"{results.architecture}: {_averaged_over(results.data.domains)}"
    return curve_chart(title, AXIS, f"{kind}, on the rest of a domain", series, first_is_mean=False)
