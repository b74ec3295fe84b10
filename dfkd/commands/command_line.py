"""The command line that all jobs share: manifest, overrides, exit codes and the last line."""

import argparse
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from dfkd.config.hashing import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.errors import (
    DfkdError,
    Exit,
    InfrastructureError,
    PartialError,
    as_utf8,
    may_pass,
    one_line,
)
from dfkd.utils import logs
from dfkd.utils.progress import say
from dfkd.utils.yaml import dump


class Described(Protocol):
    """Content of a manifest file of any kind, as plain values."""

    def as_dict(self) -> dict[str, Any]:
        """Every key with its value."""


@runtime_checkable
class Composed(Protocol):
    """Content of a file that makes manifests of itself and of another file, as a study does."""

    def manifests(self) -> list[dict[str, Any]]:
        """Each of these manifests, as plain values."""


LIBRARIES = "loads PyTorch, then checks the files that the manifest names"
"""What commands begin with that make, train or score something."""
MANIFEST = "YAML file that describes the run, or the name of one that the package brings"

MAX_COUNT = 10**6
"""Largest whole number of an option. Torch takes no more threads than 32 bits can count."""
MAX_SECONDS = 10**9
"""Largest number of seconds of an option, 31 years. The system sleeps for 292 years at most."""

COMMON = ("manifest", "overrides", "print_manifest", "dry_run", "submission_id")
"""Options that every job has. They are left out of the submission id: the manifest already includes
the overrides, and the other options only print something.
"""


def parser(
    command: str, description: str, manifest: str = MANIFEST, **choices: Sequence[str]
) -> argparse.ArgumentParser:
    """A parser with the arguments of every command, after a positional argument for each choice.

    `manifest` says what the last positional argument may be.
    """
    arguments = argparse.ArgumentParser(
        prog=f"dfkd {command}",
        description=description,
        epilog="exit codes: 0 done, 1 failed, 2 bad manifest or usage, 3 partial (the last line "
        "says what is missing), 4 worth retrying (infrastructure), 130 or 143 stopped",
    )
    for name, values in choices.items():
        arguments.add_argument(name, choices=values, help="one of {%(choices)s}", metavar=name)
    arguments.add_argument("manifest", help=manifest)
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a manifest key, e.g. --set synthesis.views=4 (repeatable)",
    )
    arguments.add_argument(
        "--print-manifest", action="store_true", help="print the resolved manifest and stop"
    )
    arguments.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    arguments.add_argument(
        "--submission-id",
        action="store_true",
        help="print the name of this run for `ray job submit --submission-id`, and stop",
    )
    return arguments


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option whose value is a whole number from `least` to `MAX_COUNT`."""

    def count(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {text!r}")
        if value > MAX_COUNT:
            raise argparse.ArgumentTypeError(f"must be at most {MAX_COUNT}, got {text!r}")
        return value

    return count


def seconds(*, zero: bool) -> Callable[[str], float]:
    """The type of an option whose value is a number of seconds: above 0, or with `zero` 0 or above,
    and at most `MAX_SECONDS`.
    """
    rule = "0 or more" if zero else "more than 0"

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (0 <= value < float("inf") and (zero or value)):
            raise argparse.ArgumentTypeError(f"must be a number of seconds, {rule}, got {text!r}")
        if value > MAX_SECONDS:
            raise argparse.ArgumentTypeError(f"must be at most {MAX_SECONDS}, got {text!r}")
        return value

    return number


def add_threads(arguments: argparse.ArgumentParser) -> None:
    """The option of jobs that score images."""
    arguments.add_argument(
        "--threads",
        type=at_least(0),
        default=0,
        metavar="N",
        help="CPU threads; 0 is all there are",
    )


def add_classes(arguments: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The option that names other classes than the manifest's."""
    arguments.add_argument(
        "--classes",
        required=required,
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        default=(),
        metavar="A,B",
        help="other classes than the manifest's, for students of embeddings (distillation.target)",
    )


def run(
    arguments: argparse.ArgumentParser,
    work: Callable[[Any, argparse.Namespace], str],
    plan: Callable[[Any, argparse.Namespace], dict[str, Any]],
    argv: Sequence[str] | None = None,
    read: Callable[[str, tuple[str, ...]], Described] = Manifest.read,
    first: str = "",
) -> int:
    """Parse the arguments, read the file, do the work and report; returns the exit code.

    A job that wrote something ends stdout with the line `wrote PATH`. An error that a person can
    fix is one line on stderr; any other exception is a bug and keeps its traceback.

    Args:
        work: does the job and returns the path of what it wrote, or an empty text if it only
            printed something. Raises `DfkdError` for anything that the user can fix.
        plan: what the job would do, for `--dry-run`: a mapping that is printed as JSON.
        read: gives the content of the file, with overrides applied; both get it.
        first: what `work` and `plan` begin with, if that takes long; it is said before.
    """
    prepare_output()
    options = arguments.parse_args(argv)
    terminated = threading.Event()
    try:
        content = read(options.manifest, tuple(options.overrides))
        # An option may ask for a text instead of the work.
        if options.print_manifest:
            show(dump(content.as_dict()))
            return Exit.DONE
        if options.submission_id:
            show(f"{submission_id(arguments.prog.split()[-1], content, options)}\n")
            return Exit.DONE
        if first:
            say(f"{arguments.prog}: {first}")
        if options.dry_run:
            show(f"{json.dumps(plan(content, options), indent=2)}\n")
            return Exit.DONE
        # A study or a finished run has a manifest; a recipe has none, and so no root.
        own = content if isinstance(content, Manifest) else getattr(content, "manifest", None)
        log = logs.json_log(arguments.prog.split()[-1], own.storage.root if own else "")
        with _interrupted_by_sigterm(terminated), log:
            written = work(content, options)
        if terminated.is_set():  # `dfkd status --watch` ends quietly
            return Exit.TERMINATED
        if written:
            print(f"wrote {written}", flush=True)
    except DfkdError as error:
        return fail(error)
    except BrokenPipeError:
        gone = "stdout: its reader has gone, so the job has stopped"
        return fail(DfkdError(f"{gone}; run the same command again, it resumes"))
    # A disk or a network that fails is no bug, wherever it shows.
    except OSError as error:
        told = f"operating system: {error}; fix that and run the same command again, it resumes"
        # Most failures pass, so the same command may succeed; a wrong path stays wrong.
        return fail(InfrastructureError(told) if may_pass(error) else DfkdError(told))
    except RuntimeError as error:
        # What has met a GPU has imported torch, which takes seconds.
        if "torch" not in sys.modules or not isinstance(
            error, sys.modules["torch"].AcceleratorError
        ):
            raise
        told = f"GPU: failed ({one_line(error)}); run the same command again, it resumes"
        return fail(InfrastructureError(told))
    except (KeyboardInterrupt, SystemExit) as stop:
        # While Ray starts, SIGTERM meets its handler, which calls sys.exit(SIGTERM).
        if isinstance(stop, SystemExit) and stop.code != signal.SIGTERM:
            raise
        by_person = isinstance(stop, KeyboardInterrupt) and not terminated.is_set()
        code = Exit.INTERRUPTED if by_person else Exit.TERMINATED
        print(f"{code.name.lower()}; run the same command again, it resumes", file=sys.stderr)
        return code
    return Exit.DONE


def prepare_output() -> None:
    """Let stdout and stderr show any name, and replace one that is closed (`>&-`) by /dev/null."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - kept open
        # The name of a class or domain may have letters that this terminal or file cannot show.
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _interrupted_by_sigterm(terminated: threading.Event) -> Iterator[None]:
    """Let SIGTERM set the event and end the block as Ctrl-C does, with all that the block started.

    `ray job stop`, Kubernetes and Slurm send it.
    """

    def interrupt(number: int, frame: object) -> None:
        """The handler of SIGTERM."""
        terminated.set()
        # No class of ours: Ray's blocking calls pass on only this one unchanged.
        raise KeyboardInterrupt

    # Python allows handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show(text: str) -> None:
    """Print a text on stdout, as far as its reader wants it (`| head`)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Write stdout, whose reader is gone, to nowhere; else Python ends with a traceback and 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def submission_id(command: str, manifest: Described, options: argparse.Namespace) -> str:
    """The submission id of a job for `ray job submit`: `dfkd-JOB-` and 16 hexadecimal digits.

    It covers the manifest with all overrides and the job's own options. Ray accepts each id once,
    so of two people who submit the same run at the same time the second gets an error.
    """
    own = {key: value for key, value in vars(options).items() if key not in COMMON}
    run: dict[str, Any] = {"manifest": manifest.as_dict(), "options": own}
    # A change of the other file makes another run.
    if isinstance(manifest, Composed):
        run["manifests"] = manifest.manifests()
    return f"dfkd-{command}-{fingerprint(run)[:16]}"


def again(command: str, options: argparse.Namespace) -> str:
    """The words that run a command with the same manifest and overrides, as text in UTF-8."""
    words = ["dfkd", command, options.manifest]
    for setting in options.overrides:
        words += ["--set", setting]
    return as_utf8(shlex.join(words))


def refuse_unreadable(unreadable: Sequence[str], written: str) -> None:
    """Raise `PartialError` if images could not be read, after naming the file `written`."""
    if unreadable:
        print(f"wrote {written}", flush=True)
        raise PartialError(
            f"evaluation.data: {len(unreadable)} images could not be read and were left out, the "
            f"first is {unreadable[0]}; fix or remove them (all are named in results.json)"
        )


def fail(error: DfkdError) -> int:
    """Print an error as its one line and return its exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code
