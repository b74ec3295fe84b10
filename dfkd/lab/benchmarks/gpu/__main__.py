"""`python -m dfkd.lab.benchmarks.gpu`; everything heavy is imported after its options are read."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dfkd.commands.command_line import fail, seconds
from dfkd.errors import DfkdError, Exit, ManifestError
from dfkd.storage.local import LocalStorage

LIMIT = 520.0
"""Seconds after which the kit ends by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line for each row, and write the record; returns the exit code."""
    begun = time.monotonic()
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m dfkd.lab.benchmarks.gpu",
        description="Measure synthesis, prompts and distillation with the real networks and random "
        "weights on this machine's GPU.",
        epilog="exit codes: 0 done, 1 a check failed or nothing could be measured, 2 usage, "
        "3 out of time; "
        "finished rows are in the folder in any case",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for gpu.json and gpu.md")
    parser.add_argument(
        "--limit",
        type=seconds(zero=False),
        default=LIMIT,
        metavar="SECONDS",
        help="end after so many seconds (%(default)g); rows that do not fit are skipped",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the miniature's networks, also without a GPU: it runs, in a minute",
    )
    options = parser.parse_args(words)
    command = shlex.join(["python", "-m", "dfkd.lab.benchmarks.gpu", *words])
    try:
        return _measure(_folder(options.out), options.quick, options.limit, begun, command)
    except DfkdError as error:
        return fail(error)


def _folder(path: str) -> LocalStorage:
    """The folder, created if it is missing; raises `ManifestError` if it cannot be written."""
    folder = LocalStorage(Path(path).absolute())
    try:
        folder.prepare()
    except ManifestError:
        raise ManifestError(
            "--out", "must be a folder that can be written to", path, "give another one"
        ) from None
    return folder


def _measure(folder: LocalStorage, quick: bool, limit: float, begun: float, command: str) -> int:
    """Run all rows; returns the exit code.

    Raises:
        DfkdError: a check has not passed, nothing could be measured, or there is no GPU for it.
    """
    from dfkd.lab.benchmarks.gpu import rows, sizes
    from dfkd.lab.benchmarks.gpu.kit import Kit
    from dfkd.lab.benchmarks.gpu.record import FAILED, JSON, PAGE, SKIPPED, RunRecord, cells
    from dfkd.utils.device import keep_freed_memory, pick_device

    device = pick_device()
    if device.type == "cpu" and not quick:
        raise DfkdError("torch sees no GPU; check the driver, or give --quick")
    keep_freed_memory()  # as workers do
    size = sizes.QUICK if quick else sizes.FULL
    planned = rows.all_rows(size, gpu=device.type == "cuda")
    record = RunRecord(folder, planned, command, limit, begun)
    for entry in record.run(Kit(size, device)):
        print("  ".join(cell for cell in cells(entry) if cell not in ("-", "")), flush=True)
    record.require_passed()
    if all(entry["state"] == FAILED for entry in record.rows):
        raise DfkdError(f"nothing could be measured; {folder.location(PAGE)} says why")
    print(f"wrote {folder.location(JSON)}", flush=True)
    skipped = any(entry["state"] == SKIPPED for entry in record.rows)
    return Exit.PARTIAL if skipped else Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
