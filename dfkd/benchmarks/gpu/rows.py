"""The rows in their order: what all others are compared with, then from cheap to expensive.

So a limit that is too short costs the rows that need a compiler, and no others.
"""

from collections.abc import Iterator

from dfkd.benchmarks.gpu import checks, synthesis, training
from dfkd.benchmarks.gpu.kit import Kit, Result
from dfkd.benchmarks.gpu.record import Row, Target
from dfkd.benchmarks.gpu.sizes import Sizes
from dfkd.benchmarks.gpu.synthesis import Mode, Variant
from dfkd.errors import DfkdError
from dfkd.synthesis.latents import Synthesiser
from dfkd.utils.types import Precision

COMPILATION = 100.0
"""Seconds that the compilation of forward and backward pass may take."""
IMAGES_PER_HOUR, SHARE, TIMES = 5000.0, 0.35, 5.0
"""Targets for one H100: images of 500 steps, share of its bfloat16 rate, speed of the plain loop."""


def all_rows(sizes: Sizes, gpu: bool) -> tuple[list[Row], list[Target]]:
    """The rows for some sizes, and the targets of some of them.

    Args:
        gpu: whether there is a GPU; a CPU compiles nothing, because that needs a C++ compiler.
    """
    first, *others = sizes.teachers
    rows = [*_limits(), *_checks(first), *_eager(first, sizes)]
    for teacher in others:
        rows += _short(teacher, sizes)
    rows += [_profile("profile, eager", first), *_prompts(first), *_students(sizes)]
    rows += [
        Row(f"miniature's {what}", lambda kit, what=what: training.time_pretraining(kit, what), 40)
        for what in ("teacher", "generator")
    ]
    best = f"{first}, fastest batch"
    if gpu:
        compiled = _Compiled(first)
        rows += compiled.rows(best)
        rows += [_mode(first, sizes.batches[0], "CUDA graphs")]
        rows += [_mode(first, sizes.batches[0], "compiled")]
        rows += [_fastest(teacher, f"{teacher}, compiled", "compiled") for teacher in others]
    else:
        rows.append(_fastest(first, best, "eager"))
    return rows, [
        Target("images/h at 500 steps", best, lambda row: row["figure"]["median"], IMAGES_PER_HOUR),
        Target("share of the bf16 rate", best, lambda row: row["figure"].get("share"), SHARE),
        Target("times the plain loop", best, lambda row: row["figure"].get("ratio"), TIMES),
    ]


def _limits() -> Iterator[Row]:
    """What the machine can do at most."""
    for precision in ("bfloat16", "float32"):
        yield Row(
            f"matrix product, {precision}",
            lambda kit, precision=precision: training.limit_matrix_rate(kit, precision),
        )
    yield Row("copy", training.limit_bandwidth)


def _checks(teacher: str) -> Iterator[Row]:
    """Images that must be the same."""
    yield Row("bfloat16 against float32", lambda kit: checks.check_precision(kit, teacher), 30)
    yield Row("batch independence", lambda kit: checks.check_independence(kit, teacher), 20)


def _variant(name: str, variant: Variant, seconds: float = 10.0) -> Row:
    """A row of our loop."""
    return Row(name, lambda kit: synthesis.time_variant(kit, variant), seconds)


def _eager(teacher: str, sizes: Sizes) -> Iterator[Row]:
    """The plain loop, and ours from the plainest variant to the fastest eager one."""
    batch = sizes.batches[0]
    yield Row(f"{teacher}, plain loop", lambda kit: synthesis.time_plain_loop(kit, teacher), 20)
    yield Row(
        f"{teacher}, plain loop, TF32 convolutions",
        lambda kit: synthesis.time_plain_loop(kit, teacher, tf32=True),
    )
    whole = Variant(teacher, batch, "float32", views=0, channels_last=False)
    yield _variant(f"{teacher}, float32, no views, channels first", whole)
    plain = Variant(teacher, batch, "float32", channels_last=False)
    yield _variant(f"{teacher}, float32, channels first", plain)
    yield _variant(f"{teacher}, float32, channels last", Variant(teacher, batch, "float32"))
    yield _variant(f"{teacher}, bfloat16, no views", Variant(teacher, batch, views=0))
    for size in sizes.batches:
        yield _variant(f"{teacher}, bfloat16, batch of {size}", Variant(teacher, size), 15)


def _short(teacher: str, sizes: Sizes) -> Iterator[Row]:
    """The plain loop and the most important eager variants of another teacher."""
    yield Row(f"{teacher}, plain loop", lambda kit: synthesis.time_plain_loop(kit, teacher), 20)
    for size in (sizes.batches[0], sizes.batches[len(sizes.batches) // 2]):
        yield _variant(f"{teacher}, bfloat16, batch of {size}", Variant(teacher, size))


def _profile(name: str, teacher: str) -> Row:
    """A profile of the fastest eager loop."""
    return Row(
        name,
        lambda kit: synthesis.profile_variant(kit, synthesis.fastest(kit, teacher)),
    )


def _prompts(teacher: str) -> Iterator[Row]:
    """Contrastive prompts, after the plain loop."""
    for name, plain in (("plain prompts", True), ("contrastive prompts", False)):
        yield Row(name, lambda kit, plain=plain: training.time_prompts(kit, teacher, plain), 15)


def _students(sizes: Sizes) -> Iterator[Row]:
    """Distillation of each student, after the plain loop."""
    variants: tuple[tuple[Precision, bool], ...] = (
        ("float32", True),
        ("float32", False),
        ("bfloat16", False),
    )
    for student in sizes.students:
        for precision, plain in variants:
            yield Row(
                f"{student}, {'plain loop' if plain else precision}",
                lambda kit, given=(student, precision, plain): training.time_distillation(
                    kit, *given
                ),
            )


def _fastest(teacher: str, name: str, mode: Mode) -> Row:
    """Our loop at the batch size of the fastest eager row."""
    return Row(
        name,
        lambda kit: synthesis.time_variant(kit, synthesis.fastest(kit, teacher, mode=mode)),
        COMPILATION if mode == "compiled" else 10.0,
    )


def _mode(teacher: str, batch: int, mode: Mode) -> Row:
    """Our loop at a given batch size, compiled."""
    name = f"{teacher}, {mode}, batch of {batch}"
    return _variant(name, Variant(teacher, batch, mode=mode), COMPILATION)


class _Compiled:
    """Rows about one compiled loop, which the first of them compiles."""

    def __init__(self, teacher: str) -> None:
        self.teacher = teacher
        self.loop: tuple[Variant, Synthesiser] | None = None

    def rows(self, name: str) -> Iterator[Row]:
        """Its check, its speed and its profile."""
        yield Row("compiled against eager", self._check, COMPILATION)
        yield Row(name, self._time, 15)
        yield Row("profile, compiled", self._profile, 15)

    def _check(self, kit: Kit) -> Result:
        variant = synthesis.fastest(kit, self.teacher, mode="compiled")
        self.loop = variant, variant.synthesiser(kit)
        return checks.check_compiled(kit, *self.loop)

    def _time(self, kit: Kit) -> Result:
        return synthesis.time_variant(kit, *self._compiled())

    def _profile(self, kit: Kit) -> Result:
        return synthesis.profile_variant(kit, *self._compiled())

    def _compiled(self) -> tuple[Variant, Synthesiser]:
        if self.loop is None:
            raise DfkdError("nothing was compiled; read the error of the check")
        return self.loop
