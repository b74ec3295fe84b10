"""Fine-tune the student, library weights and random ones on few labelled images of each domain."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import dfkd
from dfkd.config.manifest import Manifest
from dfkd.pipeline import command_line


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train, finished trainings included."""
    import torch

    from dfkd.evaluation import few_shot
    from dfkd.evaluation.few_shot_starts import check_starts

    config = manifest.fewshot
    check_starts(manifest, torch.device("cpu"), students=False)
    data, names = few_shot.select_domains(manifest)
    return {
        "domains": list(names),
        "images": sum(item.domain in names for item in data.items),
        "shots": sorted(config.shots),
        "seeds": list(config.seeds),
        "starts": list(config.starts),
        "trainings": len(names) * few_shot.count_trainings(manifest),
        "epochs": config.epochs,
        "notes": [*data.notes, *few_shot.notes(manifest, data, names)],
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Train what is missing, write results, table and curves; returns the place of results.json.

    Raises:
        PartialError: some images could not be read; everything else was used and written.
    """
    from dfkd.report.few_shot import markdown

    curves = dfkd.few_shot(manifest, threads=options.threads)
    print(markdown(curves.results))
    print(f"curves {curves.chart}")
    command_line.refuse_unreadable(curves.results.data.unreadable, curves.location)
    return curves.location


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
