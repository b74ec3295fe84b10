"""Imports go one way, and what is heavy is imported only where it is used."""

import ast
import re
import sys
import tomllib
from collections.abc import Set
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT

LAYERS = (
    "errors", "utils", "storage", "config", "models", "dataset", "prompts", "synthesis",
    "distillation", "evaluation", "cluster", "export", "report", "operations", "api", "commands",
    "lab",
)  # fmt: skip
"""The packages from the ground up: each imports those before it alone."""


def name_of(file: Path) -> str:
    """The dotted name of a module of the package or of a job."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    name_of(file): file for folder in ("dfkd", "jobs") for file in (ROOT / folder).rglob("*.py")
}
MODULES = {name for name in SOURCES if name.startswith("dfkd")}


def for_types(node: ast.AST) -> bool:
    """Whether this is a block that only type checkers read."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def imported(module: str, *, at_once: bool = False) -> frozenset[str]:
    """Names that a module imports; `at_once` leaves out what a function imports when it runs."""
    tree = ast.parse(SOURCES[module].read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    later = {inner for function in functions for inner in ast.walk(function)} if at_once else set()
    never = {inner for node in ast.walk(tree) if for_types(node) for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in later | never:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = str(node.module)
            members = {f"{source}.{alias.name}" for alias in node.names}
            # `from dfkd.models import teacher` imports a module, not a name in one.
            names |= {member if member in MODULES else source for member in members}
    return frozenset(names)


def reached(module: str) -> set[str]:
    """Everything that is imported with a module, directly or through modules of the package."""
    found: set[str] = set()
    open_ends = [module]
    while open_ends:
        new = imported(open_ends.pop(), at_once=True) - found
        found |= new
        open_ends += sorted(new & MODULES)
    return found


def packages(names: Set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def importers(library: str) -> set[str]:
    return {module for module in SOURCES if library in packages(imported(module))}


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def test_a_package_imports_only_packages_of_lower_layers() -> None:
    for module in MODULES - {"dfkd"}:
        for other in imported(module) & MODULES:
            if other == "dfkd":  # for its version
                continue
            if module.split(".")[1] != other.split(".")[1]:
                assert layer(other) < layer(module), f"{module} imports {other}"


def test_no_two_modules_import_each_other() -> None:
    """Imports within functions count: one that breaks a circle would only hide it."""
    graph = {module: imported(module) & MODULES for module in MODULES}
    assert len(graph["dfkd.synthesis.shard_maker"]) > 3
    TopologicalSorter(graph).prepare()  # raises CycleError, which names it


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("ray", r"dfkd\.(cluster|lab\.benchmarks)\..+"),
        ("boto3", r"dfkd\.storage\.s3.*"),
        ("botocore", r"dfkd\.storage\.s3.*"),
        ("obstore", r"dfkd\.storage\.azure_gcs(_client)?"),
        ("altair", r"dfkd\.lab\.charts"),
        ("vl_convert", r"dfkd\.lab\.charts"),
        ("jinja2", r"dfkd\.(report\.page|lab\.miniature\.making)"),
        ("onnxruntime", r"dfkd\.export\.(onnx_graphs|predict)"),
        ("onnx", r"dfkd\.export\.onnx_graphs"),
    ],
)
def test_a_library_is_imported_by_the_modules_alone_that_are_about_it(
    library: str, allowed: str
) -> None:
    found = importers(library)
    assert found
    assert {module for module in found if not re.fullmatch(allowed, module)} == set()


def test_what_is_imported_is_declared() -> None:
    """Not what a dependency happens to bring along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(each for group in extras.values() for each in group)]
    names = {canonical_name(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in declared}
    providers = metadata.packages_distributions()
    known = set(sys.stdlib_module_names) | {"dfkd"}
    for package in packages(set().union(*map(imported, SOURCES))) - known:
        found = {canonical_name(each) for each in providers.get(package, ())}
        assert found & names, f"{package} of {sorted(found)}"


def canonical_name(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


HEAVY = {"torch", "torchvision", "ray", "open_clip", "boto3"}


@pytest.mark.parametrize(
    "module",
    [
        "dfkd.config.manifest",
        "dfkd.config.plan",
        "dfkd.config.identity",
        "dfkd.storage.local",
        "dfkd.evaluation.data",
        "dfkd.models.weights.artifacts",
        "dfkd.commands.init",
        "dfkd.lab.few_shot.settings",
        "dfkd.lab.studies.study",
    ],
)
def test_modules_that_plan_a_run_import_nothing_heavy(module: str) -> None:
    assert packages(reached(module)).isdisjoint(HEAVY)
    assert "torch" in packages(reached("dfkd.synthesis.shard_maker"))


@pytest.mark.parametrize("job", sorted(file.stem for file in (ROOT / "jobs").glob("*.py")))
def test_help_and_refusals_of_a_job_import_nothing_heavy(job: str) -> None:
    heavy = HEAVY | {"timm", "pyarrow", "altair", "PIL"}
    assert packages(reached(f"jobs.{job}")).isdisjoint(heavy)


def test_predict_imports_only_onnxruntime_numpy_and_pillow() -> None:
    needed = packages(reached("dfkd.export.predict")) - set(sys.stdlib_module_names)
    assert needed == {"dfkd", "onnxruntime", "numpy", "PIL"}
