"""Distil a vision-language teacher into a small image classifier without a single real image.

The stages are functions, described in `dfkd.api`:

    import dfkd

    manifest = dfkd.read_manifest("manifests/miniature.yaml", classes=["rocket", "tree"])
    versions = dfkd.synthesize(manifest)
    students = dfkd.distill(manifest)
    evaluated = dfkd.evaluate(manifest)
    dfkd.export_candidates(manifest), dfkd.write_report(manifest)
    student = dfkd.load_student(students[0])
    student.predict(["rocket.png"])

`import dfkd` imports nothing heavy: the module behind a name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfkd.api import (
        BuiltVersion,
        Evaluated,
        FinishedStudent,
        NamedStudent,
        distill,
        evaluate,
        export_candidates,
        load_student,
        read_manifest,
        synthesize,
        write_report,
    )
    from dfkd.config.manifest import Manifest
    from dfkd.errors import (
        BudgetError,
        CorruptionError,
        DfkdError,
        FingerprintError,
        InfrastructureError,
        ManifestError,
        PartialError,
        WeightsError,
    )

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "BuiltVersion",
    "CorruptionError",
    "DfkdError",
    "Evaluated",
    "FingerprintError",
    "FinishedStudent",
    "InfrastructureError",
    "Manifest",
    "ManifestError",
    "NamedStudent",
    "PartialError",
    "WeightsError",
    "distill",
    "evaluate",
    "export_candidates",
    "load_student",
    "read_manifest",
    "synthesize",
    "write_report",
]

if not TYPE_CHECKING:  # for mypy it would give every unknown name a type

    def __getattr__(name: str) -> object:
        """A public name, from its module (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'dfkd' has no attribute {name!r}")
        light = {"Manifest": "dfkd.config.manifest"}
        home = "dfkd.errors" if name.endswith("Error") else light.get(name, "dfkd.api")
        globals()[name] = getattr(import_module(home), name)
        return globals()[name]

    def __dir__() -> list[str]:
        """The public names, for completion."""
        return [*globals(), *__all__]
