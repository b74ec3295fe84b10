"""Fine-tune the student, library weights and random ones on few labelled images of each domain."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.lab.few_shot.settings import FewShot, read_options
from dfkd.storage.local import open_storage


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train, finished trainings included."""
    import torch

    from dfkd.lab.few_shot import run
    from dfkd.lab.few_shot.tuning import check_starts

    config = read_options(options)
    check_starts(manifest, config, torch.device("cpu"), students=False)
    data, names = run.select_domains(manifest, config)
    return {
        "domains": list(names),
        "images": sum(item.domain in names for item in data.items),
        "shots": sorted(config.shots),
        "seeds": list(config.seeds),
        "starts": list(config.starts),
        "trainings": len(names) * run.count_trainings(config),
        "epochs": config.epochs,
        "notes": [*data.notes, *run.notes(config, data, names)],
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Train what is missing, write results, table and curves; returns the place of results.json.

    Raises:
        PartialError: some images could not be read; everything else was used and written.
    """
    from dfkd.lab.few_shot.results import FOLDER, KEY, markdown
    from dfkd.lab.few_shot.run import few_shot

    results = few_shot(manifest, read_options(options), threads=options.threads)
    root = open_storage(manifest.storage.root)
    print(markdown(results))
    print(f"curves {root.location(f'{FOLDER}/curves.svg')}")
    command_line.refuse_unreadable(results.data.unreadable, root.location(KEY))
    return root.location(KEY)


def names(text: str) -> list[str]:
    """The words between commas; none in an empty text."""
    return [name.strip() for name in text.split(",")] if text else []


def numbers(text: str) -> list[int]:
    """The whole numbers between commas."""
    return [int(number) for number in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("fewshot", __doc__ or "")
    add, usual = arguments.add_argument, FewShot()
    add("--domains", type=names, metavar="A,B", help="domains of evaluation.data (all)")
    add("--shots", type=numbers, metavar="K,K", help=f"images of each class {usual.shots}")
    add("--seeds", type=numbers, metavar="N,N", help=f"of draws and new weights {usual.seeds}")
    add("--starts", type=names, metavar="A,B", help=f"initial weights {usual.starts}")
    add("--epochs", type=int, metavar="N", help=f"epochs of each training ({usual.epochs})")
    add("--learning-rate", type=float, help=f"of trained weights ({usual.learning_rate})")
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
