"""What each study costs, and which figure or table of the paper it shows."""

from dfkd.config.plan import image_count, image_steps, sampling_steps
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.distiller import Schedule
from dfkd.lab.studies.study import Study, files, read
from dfkd.utils.markdown import align

PAPER = {
    **{f"Figure {number}": "no study yet" for number in range(1, 12)},
    **{f"Table {number}": "no study yet" for number in range(1, 9)},
    "Figure 1": "a drawing of the task",
    "Figure 3": "a drawing of the idea",
    "Figure 4": "a drawing of the prompt methods",
    "Figure 5": "dfkd fewshot, of any finished run",
    "Table 8": "the style dictionary, which is prompts.styles: paper",
}
"""Every figure and table of the paper, with the reason why it may have no study."""


def cost(study: Study) -> dict[str, int]:
    """Cost of a full run: data sets, their images and steps, students, images seen in training."""
    data_sets = study.data_sets()
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


def listing() -> str:
    """Text: all studies with their costs, then the figures and tables of the paper."""

    def order(study: Study) -> tuple[int, str]:
        # Figures and tables in the paper's order, then what the paper does not show.
        positions = [list(PAPER).index(name) for name in study.described.shows if name in PAPER]
        return min(positions, default=len(PAPER)), study.described.name

    studies = sorted(map(read, files()), key=order)
    lines = [("study", "shows", "rows", "seeds", "images", "student images")]
    for study in studies:
        totals, described = cost(study), study.described
        lines.append(
            (
                described.name,
                ", ".join(described.shows),
                str(len(study.rows)),
                str(len(described.chosen_seeds)),
                f"{totals['images']:,}",
                f"{totals['student_images']:,}",
            )
        )
    index = []
    for name, reason in PAPER.items():
        showing = [each.described.name for each in studies if name in each.described.shows]
        index.append(f"{name}: {', '.join(showing) or reason}")
    return "\n".join([*align(lines, left=2, gap="  "), "", *index])
