"""Studies by name, what each costs, and which figure or table of the paper it shows."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dfkd.config.plan import image_count, image_steps, sampling_steps
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.distiller import Schedule
from dfkd.errors import ManifestError
from dfkd.lab.studies.study import FILE, Study
from dfkd.lab.studies.study import read as read_study
from dfkd.utils.markdown import align

STUDIES = Path(__file__).parents[3] / "manifests" / "studies"

PAPER = {
    **{f"Figure {number}": "no study yet" for number in range(1, 12)},
    **{f"Table {number}": "no study yet" for number in range(1, 9)},
    "Figure 1": "a drawing of the task",
    "Figure 3": "a drawing of the idea",
    "Figure 4": "a drawing of the prompt methods",
    "Figure 5": "jobs/fewshot.py, of any finished run",
    "Table 8": "the style dictionary, which is prompts.styles: paper",
}
"""Every figure and table of the paper, with the reason why it may have no study."""


def find(source: str, overrides: tuple[str, ...]) -> Study:
    """The study for a name, a folder or a file.

    Raises:
        ManifestError: there is no such study, or it breaks a rule.
    """
    # A path first, so that a study of one's own may have the name of a shipped one. Other folders
    # may have it too: `images` is the name of a study.
    path = Path(source)
    if path.exists() and (not path.is_dir() or (path / FILE).exists()):
        return read_study(source, overrides)
    names = [path.parent.name for path in files()]
    if source in names:
        return read_study(STUDIES / source, overrides)
    near = difflib.get_close_matches(source, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
    raise ManifestError("study", "must be a study's name, folder or file", source, remedy)


def files() -> list[Path]:
    """Paths of all studies in the repository, sorted by name."""
    return sorted(STUDIES.glob(f"*/{FILE}"))


def cost(study: Study) -> dict[str, int]:
    """Cost of a full run: data sets, their images and steps, students, images seen in training."""
    data_sets = study.data_sets().values()
    seen = 0
    # Every cell trains its own student, but cells with the same synthesis share a data set.
    for cell in study.cells if study.trains else ():
        config = cell.manifest.distillation
        steps = steps_per_epoch(image_count(cell.manifest), config.batch_size)
        seen += Schedule.of(config, steps).total * config.batch_size
    return {
        "data_sets": len(data_sets),
        "images": sum(map(image_count, data_sets)),
        "optimisation_steps": sum(map(image_steps, data_sets)),
        "sampling_steps": sum(map(sampling_steps, data_sets)),
        "students": len(study.cells) if study.trains else 0,
        "student_images": seen,
    }


HEADS = ("study", "shows", "rows", "seeds", "images", "student images")


def listing() -> str:
    """Text: all studies with their costs, then the figures and tables of the paper."""
    studies = sorted((read_study(path) for path in files()), key=_order)
    text = align([HEADS, *map(_line, studies)], left=2, gap="  ")
    return "\n".join([*text, "", *_index(studies)])


def _order(study: Study) -> tuple[int, str]:
    """Sort key: figures and tables in the paper's order, then what the paper does not show."""
    positions = [list(PAPER).index(name) for name in study.described.shows if name in PAPER]
    return min(positions, default=len(PAPER)), study.described.name


def _line(study: Study) -> tuple[str, ...]:
    """The cells of a study's line in the listing."""
    totals = cost(study)
    return (
        study.described.name,
        ", ".join(study.described.shows),
        str(len(study.rows)),
        str(len(study.described.chosen_seeds)),
        f"{totals['images']:,}",
        f"{totals['student_images']:,}",
    )


def _index(studies: Sequence[Study]) -> Iterator[str]:
    """Yield a line for each figure and table of the paper: its studies, or why it has none."""
    for name, reason in PAPER.items():
        showing = [each.described.name for each in studies if name in each.described.shows]
        yield f"{name}: {', '.join(showing) or reason}"
