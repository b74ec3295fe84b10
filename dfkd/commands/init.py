"""Write a first manifest from class names, with comments, for the models that can run here."""

import argparse
import re
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dfkd.commands.command_line import fail, prepare_output, show
from dfkd.errors import DfkdError, Exit, ManifestError, printable_line
from dfkd.operations import drafting


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    prepare_output()
    arguments = argparse.ArgumentParser(
        prog="dfkd init",
        description=__doc__,
        epilog="exit codes: 0 done, 1 failed, 2 bad names or usage, 130 stopped",
    )
    arguments.add_argument("classes", help='class names with commas: "mug, stapler, laptop"')
    arguments.add_argument("--name", help="name of the run; by default from the first classes")
    arguments.add_argument("--output", metavar="FILE", help="the manifest; by default NAME.yaml")
    arguments.add_argument("--force", action="store_true", help="replace a file that exists")
    options = arguments.parse_args(argv)
    classes = [each.strip() for each in options.classes.split(",")]
    name = _name(classes) if options.name is None else options.name
    path = Path(f"{name}.yaml" if options.output is None else options.output)
    try:
        drafting.check_names(name, classes)
        if path.exists() and not options.force:
            raise _exists(path)
        # A path may have any letters, and stands in comments.
        file = printable_line(shlex.quote(str(path)))
        text, lines = drafting.draft(name, classes, drafting.find_gpu(), file)
        # Another process may have made it meanwhile.
        with path.open("w" if options.force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return fail(_exists(path))
    except DfkdError as error:
        return fail(error)
    except OSError as error:
        return fail(DfkdError(f"operating system: {error}; fix that, or give another --output"))
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return Exit.INTERRUPTED
    show("\n".join([*lines, f"wrote {printable_line(str(path))}", ""]))
    return Exit.DONE


def _name(classes: Sequence[str]) -> str:
    """A name for the run from the first two classes, in the letters that a name may have."""
    plain = unicodedata.normalize("NFKD", " ".join(classes[:2])).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "_", plain.lower())[:40].strip("_") or "classes"


def _exists(path: Path) -> ManifestError:
    """The refusal to replace a file."""
    remedy = "give another --output or --name, or --force to replace it"
    return ManifestError("--output", "must not exist yet", str(path), remedy)


if __name__ == "__main__":
    sys.exit(main())
