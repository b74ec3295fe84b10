"""The command `dfkd`: it finds the module of a subcommand and calls its `main`.

Nothing else is imported, so that help and refusals answer at once. The files in `jobs/` call the
same modules, for `ray job submit`.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from dfkd import __version__
from dfkd.errors import Exit

COMMANDS = {
    "demo": "the whole system on this machine in minutes, with the bundled models",
    "init": "write a commented manifest for class names of your own",
    "audit": "a few images of each class, and whether the run is worth its time",
    "pipeline": "class names in, candidates and report out: all stages in a row",
    "ship": "export the most accurate candidate that fits your limits",
    "predict": "label pictures with an exported model",
    "status": "where a run stands, and the command to run next",
    "report": "write the page about a run, or about two side by side",
    "synthesize": "prompts, images, and a published version of the data set",
    "distill": "train the students on the current version",
    "evaluate": "score teacher, text-only classifier and students",
    "labels": "labels of other classes for a student of embeddings",
    "regenerate": "the next version, which becomes current only if it is as good",
    "verify": "check every byte of a published version",
    "clean": "remove old versions and abandoned work",
    "fetch": "download the published weights that a manifest names",
    "fewshot": "fine-tune a student on a few labelled images",
    "reproduce": "a table or figure of the paper, from a study",
    "benchmark": "measure each part on this machine",
    "pretrain": "train the bundled miniature models",
}
"""Each subcommand with its line in the help. Its module is that of its name in this package."""

ELSEWHERE = {
    "demo": "dfkd.commands.pipeline",
    "predict": "dfkd.export.predict",
    "fewshot": "dfkd.lab.commands.fewshot",
    "reproduce": "dfkd.lab.commands.reproduce",
    "benchmark": "dfkd.lab.commands.benchmark",
    "pretrain": "dfkd.lab.commands.pretrain",
}
"""The modules of the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the first word names; returns the exit code."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = (f"  {name:<12}{text}" for name, text in COMMANDS.items())
        print("usage: dfkd COMMAND ...\n\ncommands (dfkd COMMAND --help):", *lines, sep="\n")
        return Exit.DONE
    if name == "--version":
        print(f"dfkd {__version__}")
        return Exit.DONE
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"error: command: must be one of {known}, got {name!r}; see dfkd --help",
            file=sys.stderr,
        )
        return Exit.USAGE
    if name == "demo":
        words = ["miniature", *words]
    # Threads that spin while they wait can make workers on few cores many times slower. OpenMP
    # reads this when a library loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code: int = import_module(ELSEWHERE.get(name, f"dfkd.commands.{name}")).main(words)
    return code
