"""The API reference, rendered from docstrings: `python -m tests.repository.reference FOLDER`."""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import dfkd


def main(folder: Path) -> None:
    """Write the pages under a folder."""
    # pdoc documents the names that a module has; `dfkd` has none before their first use.
    for name in dfkd.__all__:
        getattr(dfkd, name)
    # Where there is an __all__, pdoc leaves submodules out.
    below = [f"dfkd.{module.name}" for module in pkgutil.iter_modules(dfkd.__path__)]
    # An annotation inside pydantic, of which the pages show nothing.
    warnings.filterwarnings("ignore", ".*PydanticDataclass", UserWarning)
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("dfkd", *below, output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
