"""Make a table or figure of the paper, from a study: --list names them all."""

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dfkd import command, footprint
from dfkd.cells import Outcome
from dfkd.distillation import Course
from dfkd.errors import CorruptionError, DfkdError, ManifestError, PartialError
from dfkd.objects import split_root
from dfkd.plan import image_count, image_steps
from dfkd.published import read_json
from dfkd.report import study as report
from dfkd.report.facts import commit
from dfkd.report.grid import markdown
from dfkd.reproduction import maps, networks, open_evaluation, reproduce
from dfkd.storage import Storage, open_storage
from dfkd.streaming import steps_per_epoch
from dfkd.study import FILE, Study
from dfkd.study import read as read_study
from dfkd.study_results import FILE as RESULTS
from dfkd.study_results import Results, gather

STUDIES = Path(__file__).parents[1] / "manifests" / "studies"

PAPER = {
    **{f"Figure {number}": "no study yet" for number in range(1, 12)},
    **{f"Table {number}": "no study yet" for number in range(1, 9)},
    "Figure 1": "a drawing of the task",
    "Figure 3": "a drawing of the idea",
    "Figure 4": "a drawing of the prompt methods",
    "Figure 5": "jobs/fewshot.py, of any finished run",
    "Table 8": "the style dictionary, which is prompts.styles: paper",
}
"""Every figure and table, and why it may have no study."""

REASONS = 3
"""Failed cells whose reasons an error repeats; the table's notes have them all."""


def read(place: str, overrides: tuple[str, ...]) -> Study:
    """The study that a name, a folder or a file stands for.

    Raises:
        ManifestError: there is none, or it breaks a rule.
    """
    if Path(place).exists():
        return read_study(place, overrides)
    names = [path.parent.name for path in files()]
    if place in names:
        return read_study(STUDIES / place, overrides)
    near = difflib.get_close_matches(place, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
    raise ManifestError("study", "must be a study's name, folder or file", place, remedy)


def files() -> list[Path]:
    """Of all studies that are shipped, by name."""
    return sorted(STUDIES.glob(f"*/{FILE}"))


def plan(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make if nothing of it were there yet."""
    if options.output is not None:
        split_root("--output", options.output)
    open_evaluation(study)
    return {
        "study": study.described.name,
        "shows": list(study.described.shows),
        "size": study.described.size,
        "rows": len(study.rows),
        "seeds": list(study.described.chosen_seeds),
        **cost(study),
    }


def cost(study: Study) -> dict[str, int]:
    """Data sets, image-steps, students, and images that these see in training; counted."""
    data_sets = study.data_sets().values()
    seen = 0
    for cell in study.cells if study.trains else ():
        config = cell.manifest.distillation
        steps = steps_per_epoch(image_count(cell.manifest), config.batch_size)
        seen += Course.of(config, steps).total * config.batch_size
    return {
        "data_sets": len(data_sets),
        "image_steps": sum(map(image_steps, data_sets)),
        "students": len(study.cells) if study.trains else 0,
        "student_images": seen,
    }


def work(study: Study, options: argparse.Namespace) -> str:
    """Make what is missing, write table and figure; returns the place of the main file.

    Raises:
        PartialError: some cells failed; the others are kept, and the table has them.
    """
    data = open_evaluation(study)
    output = open_output(study, options)
    found = reproduce(study, data, options.threads, _tell, options.at_once)
    laid_out = maps(study, data, found, options.threads) if data else ()
    again, rows = command.again("reproduce", options), networks(study, found)
    sizes = {label: network.parameters for label, network in rows.items()}
    results = gather(study, found, again, commit(), laid_out, sizes)
    if results.failed and not results.rows:
        raise _failed(study, results)
    ms = footprint.find_or_write(output, rows) if rows else {}
    place = report.write(output, study, results, found.versions, data, ms)
    if study.trains:
        print(markdown(report.grid(study.described, results, ms)), flush=True)
    if results.failed:
        print(f"wrote {place}", flush=True)
        raise _failed(study, results)
    return place


def _failed(study: Study, results: Results) -> PartialError:
    shown = "; ".join(f"{label}: {why}" for label, why in list(results.failed.items())[:REASONS])
    return PartialError(
        f"study {study.described.name}: {len(results.failed)} of {len(study.cells)} cells failed "
        f"({shown}); run the same command again, it resumes"
    )


def _tell(label: str, outcome: Outcome, found: bool) -> None:
    did = "found" if found else "finished"
    print(f"{label}: {did} {outcome.model}, accuracy {100 * outcome.mean:.1f}", flush=True)


def open_output(study: Study, options: argparse.Namespace) -> Storage:
    """Where the files go: --output, or the study's folder; of --quick a folder under its root."""
    if options.output is None and study.described.size == "quick":
        root = open_storage(study.manifest.storage.root)
        return root.child(f"studies/{study.described.name}")
    place = options.output or str(study.folder)
    split_root("--output", place)
    try:
        return open_storage(place)
    except ManifestError as error:
        raise ManifestError(
            "--output", f"must be a folder or s3://bucket/prefix ({error})", place, "give another"
        ) from None


HEADS = ("study", "shows", "rows", "seeds", "image-steps", "student images", "results")


def listing() -> str:
    """Every figure and table of the paper, and every study with its cost and its results."""
    studies = sorted((read_study(path) for path in files()), key=_order)
    lines = [HEADS, *(_line(study) for study in studies)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(HEADS))]
    text = [
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *_index(studies)])


def _order(study: Study) -> tuple[int, str]:
    """Figures, tables, then what the paper does not have."""
    found = [list(PAPER).index(name) for name in study.described.shows if name in PAPER]
    return min(found, default=len(PAPER)), study.described.name


def _line(study: Study) -> tuple[str, ...]:
    counted = cost(study)
    return (
        study.described.name,
        ", ".join(study.described.shows),
        str(len(study.rows)),
        str(len(study.described.chosen_seeds)),
        f"{counted['image_steps']:,}" if counted["image_steps"] else "-",
        f"{counted['student_images']:,}",
        _committed(study),
    )


def _committed(study: Study) -> str:
    """The day of the results beside the study's file, if there are any."""
    if not (study.folder / RESULTS).is_file():
        return "-"
    try:
        dates = read_json(open_storage(str(study.folder)), RESULTS)["made"]["dates"]
    except (CorruptionError, KeyError, TypeError):
        return "damaged"
    return str(dates[-1]) if dates else "yes"


def _index(studies: Sequence[Study]) -> Iterator[str]:
    for name, reason in PAPER.items():
        showing = [each.described.name for each in studies if name in each.described.shows]
        yield f"{name}: {', '.join(showing) or reason}"


class _List(argparse.Action):
    """Prints the list and stops, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            print(listing())
        except DfkdError as error:
            parser.exit(command.fail(error))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "")
    add = arguments.add_argument
    add("--list", action=_List, nargs=0, help="name every table, figure and study, and stop")
    add(
        "--quick",
        action="append_const",
        const="size=quick",
        dest="overrides",
        help="the study's own small version, in minutes; short for --set size=quick",
    )
    add("--output", metavar="PLACE", help="folder or s3://bucket/prefix of the table and figure")
    add(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="students trained side by side; 0 is as many as there are GPUs, or CPUs",
    )
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 is all there are")
    return command.run_with(
        read, arguments, work, plan, argv, lambda study: study.manifest.storage.root
    )


if __name__ == "__main__":
    sys.exit(main())
