"""Imports go one way, and what is heavy is imported only where it is used."""

import ast
import sys
from collections.abc import Set
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def name_of(file: Path) -> str:
    """The dotted name of a module of the package or of a job."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    name_of(file): file for folder in ("dfkd", "jobs") for file in (ROOT / folder).rglob("*.py")
}
MODULES = {name for name in SOURCES if name.startswith("dfkd")}
TOP = {"dfkd.api", "dfkd.benchmarks.stages", "dfkd.pipeline.regeneration", "dfkd.studies.runner"}
"""The stages as functions, and what runs them all: they stand where the jobs stand, above all."""
ABOVE = ("dfkd.cluster", "dfkd.benchmarks.", "jobs.")
"""Who may know Ray: what runs on a cluster, and what measures that."""


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
            # `from dfkd import teacher` imports a module, `from dfkd.models.teacher import X` its
            # name.
            names |= {member if member in MODULES else source for member in members}
    return frozenset(names)


def reached(module: str) -> set[str]:
    """All that importing a module imports at once, through the modules of the package."""
    found: set[str] = set()
    open_ends = [module]
    while open_ends:
        new = imported(open_ends.pop(), at_once=True) - found
        found |= new
        open_ends += sorted(new & MODULES)
    return found


def packages(names: Set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def importers(*wanted: str) -> set[str]:
    return {module for module in SOURCES if packages(imported(module)) & set(wanted)}


def test_the_graph_of_imports_has_no_circle() -> None:
    """Imports within functions count: one that breaks a circle would only hide it."""
    graph = {module: imported(module) & MODULES for module in MODULES}
    assert len(graph["dfkd.synthesis.shard_maker"]) > 3
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it
    assert (
        order.index("dfkd.errors")
        < order.index("dfkd.config.manifest")
        < order.index("dfkd.models.teacher")
    )


def test_nothing_in_the_package_imports_a_job() -> None:
    jobs = {file.stem for file in (ROOT / "jobs").glob("*.py")}
    assert not jobs & set(sys.stdlib_module_names), "a job would hide a module of Python"
    assert "pipeline" in jobs
    for module in MODULES:
        assert not packages(imported(module)) & (jobs | {"jobs"}), module


def test_only_the_cluster_its_benchmarks_and_the_jobs_know_ray() -> None:
    found = importers("ray")
    assert "dfkd.cluster.pool" in found
    assert {name for name in found if not name.startswith(ABOVE)} == set()
    libraries = {name for name in MODULES - TOP if not name.startswith(ABOVE)}
    for module in libraries:
        assert not {name for name in imported(module) if name.startswith("dfkd.cluster")}, module


def test_nothing_below_the_stages_imports_them() -> None:
    assert "dfkd.cluster.synthesis" in imported("dfkd.api")
    for module in MODULES - TOP:
        assert not imported(module) & TOP, module


def test_only_the_s3_storage_knows_boto3() -> None:
    assert importers("boto3", "botocore") == {"dfkd.storage.s3", "dfkd.storage.s3_client"}


def test_only_the_report_draws_charts_and_fills_templates() -> None:
    drawing = {"charts", "few_shot", "figures", "svg"}
    assert importers("altair", "vl_convert") == {f"dfkd.report.{name}" for name in drawing}
    assert importers("jinja2") == {"dfkd.report.page"}


@pytest.mark.parametrize(
    "module",
    [
        "dfkd.config.manifest",
        "dfkd.config.plan",
        "dfkd.config.fingerprint",
        "dfkd.storage.local",
        "dfkd.evaluation.data",
        "dfkd.models.weights.download",
        "dfkd.evaluation.few_shot_split",
        "dfkd.studies.study",
    ],
)
def test_what_plans_a_run_is_light(module: str) -> None:
    assert packages(reached(module)).isdisjoint(
        {"torch", "torchvision", "ray", "open_clip", "boto3"}
    )
    assert "torch" in packages(reached("dfkd.synthesis.shard_maker"))


def test_a_take_home_student_needs_no_more_than_its_runtime() -> None:
    assert importers("onnxruntime") == {"dfkd.export.onnx_graphs", "dfkd.export.predict"}
    assert importers("onnx") == {"dfkd.export.onnx_graphs"}
    needed = packages(reached("dfkd.export.predict")) - set(sys.stdlib_module_names)
    assert needed == {"dfkd", "onnxruntime", "numpy", "PIL"}


@pytest.mark.parametrize("job", sorted(file.stem for file in (ROOT / "jobs").glob("*.py")))
def test_help_and_refusals_of_a_job_import_nothing_heavy(job: str) -> None:
    heavy = {
        "torch",
        "torchvision",
        "ray",
        "open_clip",
        "timm",
        "boto3",
        "pyarrow",
        "altair",
        "PIL",
    }
    assert packages(reached(f"jobs.{job}")).isdisjoint(heavy)
