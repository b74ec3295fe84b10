"""Every error and warning that the system can give, collected from its source for jobs/MESSAGES.md.

`python -m tests.repository.messages` writes that page anew; a test fails where it no longer is what
the source says.

An error is a call of one of the error classes; where a small function makes it from its arguments
(one that is declared to return an error, or never to return), each call of that function counts
instead. What is only known at run time stands in braces.
"""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from tests.helpers.jobs import ROOT

PAGE = ROOT / "jobs" / "MESSAGES.md"

WARNINGS = {
    ("dfkd.dataset.verification", ""): "problem",
    ("dfkd.evaluation.data", "_notes"): "note",
    ("dfkd.evaluation.layouts", "remarks"): "note",
    ("dfkd.evaluation.layouts", "_differences"): "note",
    ("dfkd.lab.few_shot.run", "notes"): "note",
}
"""Modules or functions whose sentences a job prints behind this word."""

Bindings = Mapping[str, str]


@dataclass(frozen=True, order=True)
class Message:
    """A row of the list."""

    exit_code: int
    kind: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

    name: str
    tree: ast.Module

    def functions(self) -> Iterator[ast.FunctionDef]:
        """Every function, including methods and inner functions."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))


@cache
def modules() -> tuple[Module, ...]:
    """The modules of the package and of the jobs, by name."""
    files = [file for folder in ("dfkd", "jobs") for file in (ROOT / folder).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    parsed = [ast.parse(file.read_text()) for file in files]
    return tuple(Module(name, tree) for name, tree in sorted(zip(names, parsed, strict=True)))


@cache
def exit_codes() -> dict[str, int]:
    """Each error class, wherever it is defined, and the exit code of a job that ends with it."""
    found = {"DfkdError": 1}
    for _ in range(3):  # a class may stand before its base in the order of files
        for module in modules():
            for node in ast.walk(module.tree):
                bases = {ast.unparse(base) for base in getattr(node, "bases", [])}
                if isinstance(node, ast.ClassDef) and bases & found.keys():
                    kind = getattr(importlib.import_module(module.name), node.name)
                    found[node.name] = int(kind.exit_code)
    return found


def placeholder(node: ast.expr) -> str:
    """A short word for what is only known at run time: the name that the expression starts from."""
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word):
            return word
        case ast.Subscript(value=inner) | ast.BinOp(left=inner) | ast.BoolOp(values=[inner, *_]):
            return placeholder(inner)
        case ast.GeneratorExp(generators=[first, *_]) | ast.ListComp(generators=[first, *_]):
            return placeholder(first.iter)
        case ast.Call(func=ast.Attribute(attr="location")):
            return "location"
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name != "join":
            return placeholder(inner)
        case ast.Call(args=arguments):
            return next((word for word in map(placeholder, arguments) if word != "..."), "...")
    return "..."


def text(node: ast.expr, known: Bindings) -> str:
    """The expression as a reader will see it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text(value, known) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return text(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left, known) + text(node.right, known)
    if isinstance(node, ast.IfExp):
        return f"[{text(node.body, known)} | {text(node.orelse, known)}]"
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    return f"{{{placeholder(node)}}}"


@cache
def constants(module: Module) -> dict[str, str]:
    """The module's own texts and numbers, and those that it takes from others, by name."""
    found: dict[str, str] = {}
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names if alias.name.isupper()}
            for other in (each for each in modules() if names and each.name == node.module):
                found |= {k: v for k, v in constants(other).items() if k in names}
        if not isinstance(node, ast.Assign):
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue
        names = [ast.unparse(name) for name in getattr(node.targets[0], "elts", node.targets)]
        values = value if isinstance(node.targets[0], ast.Tuple) else [value]
        found |= {name: str(each) for name, each in zip(names, values, strict=True)}
    return found


def local_texts(function: ast.FunctionDef, known: Bindings) -> dict[str, str]:
    """What the function's own names stand for, where each is given one text."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    texts = dict(known)
    for name, values in found.items():
        if len(values) == 1 and isinstance(values[0], ast.Constant | ast.JoinedStr | ast.IfExp):
            texts[name] = text(values[0], texts)
    return texts


def is_maker(function: ast.FunctionDef) -> bool:
    """Whether it makes an error from its arguments."""
    returns = ast.unparse(function.returns) if function.returns else ""
    return returns == "NoReturn" or returns in exit_codes()


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of plain names below a node, inner functions left to themselves."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name):
            yield child.func.id, child
        yield from calls(child)


def message(kind: str, call: ast.Call, known: Bindings) -> Message:
    """The row of an error's call."""
    words = [text(argument, known) for argument in call.args]
    if len(words) == 4:  # ManifestError(field, rule, value, remedy)
        field, rule, value, remedy = words
        said = f"{field}: {rule}, got {value}"
    else:
        said, _, remedy = words[0].rpartition("; ")
        said, remedy = (said, remedy) if said else (remedy, "")
    return Message(exit_codes()[kind], kind, " ".join(said.split()), " ".join(remedy.split()))


@cache
def makers_of(module: Module) -> dict[str, ast.FunctionDef]:
    """The functions of a module that make errors from their arguments, by name."""
    return {function.name: function for function in module.functions() if is_maker(function)}


def imported_makers(module: Module) -> Iterator[tuple[str, Module]]:
    """Each maker that a module takes from another, and whose it is."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            for other in (found for found in modules() if found.name == node.module):
                yield from (
                    (alias.name, other) for alias in node.names if alias.name in makers_of(other)
                )


def errors(module: Module) -> Iterator[Message]:
    """Every error of a module."""
    makers, own = makers_of(module), constants(module)
    foreign = dict(imported_makers(module))
    called: set[str] = set()
    for function in module.functions():
        if function.name in makers:
            continue
        known = local_texts(function, own)
        for name, call in calls(function):
            if name in exit_codes():
                yield message(name, call, known)
            elif name in makers:
                called.add(name)
                yield from _expanded(makers, makers[name], call, known, own)
            elif name in foreign:
                theirs = makers_of(foreign[name])
                yield from _expanded(theirs, theirs[name], call, known, constants(foreign[name]))
    for name in makers.keys() - called:
        yield from _expanded(makers, makers[name], None, {}, own)


def _expanded(
    makers: Mapping[str, ast.FunctionDef],
    maker: ast.FunctionDef,
    call: ast.Call | None,
    known: Bindings,
    own: Bindings,
) -> Iterator[Message]:
    """What a maker makes of the arguments of one call."""
    given = dict(own)
    if call:
        for parameter, argument in zip(maker.args.args, call.args, strict=False):
            given[parameter.arg] = text(argument, known)
    texts = local_texts(maker, given)
    for name, inner in calls(maker):
        if name in exit_codes():
            yield message(name, inner, texts)
        elif name in makers:
            yield from _expanded(makers, makers[name], inner, texts, own)


def warnings(module: Module) -> Iterator[Message]:
    """Every sentence that a module gives to be printed."""
    for (name, inside), kind in WARNINGS.items():
        if name != module.name:
            continue
        for function in module.functions():
            if inside in ("", function.name):
                known = local_texts(function, constants(module))
                for sentence in _sentences(function):
                    said, _, remedy = text(sentence, known).partition("; ")
                    yield Message(0 if kind == "note" else 1, kind, said, remedy)


def _sentences(node: ast.AST) -> Iterator[ast.expr]:
    """Texts of several words that are not docstrings and not given to a name."""
    for child in ast.iter_child_nodes(node):
        value = child.value if isinstance(child, ast.Expr | ast.Assign) else None
        if isinstance(value, ast.Constant | ast.JoinedStr):
            continue
        if not isinstance(child, ast.Constant | ast.JoinedStr):
            yield from _sentences(child)
        elif text(child, {}).count(" ") >= 3:
            yield child


@cache
def messages() -> list[Message]:
    """All rows, each once: by exit code, class and text."""
    found = {row for module in modules() for row in (*errors(module), *warnings(module))}
    return sorted(found)


def _cell(words: str) -> str:
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", words)


TITLES = {
    0: "Notes",
    1: "Failed",
    2: "Bad manifest or usage",
    3: "Partial",
    4: "Infrastructure: worth retrying",
}
"""What each exit code means."""


def page() -> str:
    """The page as Markdown: one table for each exit code."""
    found = messages()
    lines = [
        "# Messages",
        "",
        f"All {len(found)} errors and warnings, with their remedies, by",
        "[exit code](README.md#exit-codes). An error is the last line on stderr, behind `error: `;",
        "what stands in braces is known when it happens. `problem` and `note` lines are on stdout.",
        "Besides these, argparse names what is wrong with a command line (exit code 2), and the",
        "type and range of each key are checked as [manifests/README.md](../manifests/README.md)",
        "says. This page is written by `python -m tests.repository.messages`.",
    ]
    for code in sorted({row.exit_code for row in found}):
        lines += ["", f"## {code}: {TITLES[code]}", ""]
        lines += ["| kind | message | what to do |", "|---|---|---|"]
        lines += [
            f"| {row.kind} | {_cell(row.text)} | {_cell(row.remedy)} |"
            for row in found
            if row.exit_code == code
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
