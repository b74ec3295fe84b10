"""The rows in their order: what others are compared with, what is cheap, what is compiled.

A limit that is too short costs the last rows, of which each takes a minute or two to compile.
"""

from collections.abc import Iterator
from functools import partial

from dfkd.lab.benchmarks.gpu import checks, diffusion, synthesis, training
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.gpu.record import Row
from dfkd.lab.benchmarks.gpu.sizes import Sampler, Sizes
from dfkd.lab.benchmarks.gpu.synthesis import Variant
from dfkd.utils.types import Precision

COMPILATION = 100.0
"""Seconds that the compilation of forward and backward pass may take."""


def all_rows(sizes: Sizes, gpu: bool) -> list[Row]:
    """The rows for some sizes.

    Args:
        gpu: whether there is a GPU; a CPU compiles nothing, because that needs a C++ compiler.
    """
    first, *others = sizes.teachers
    rows = [*_limits(), *_checks(first), *_eager(first, sizes), _profile(first)]
    # Early, because these matter most, and late rows may find no time.
    if gpu:
        rows += [_compiled_fastest(first)]
        rows += [Row("compiled against eager", checks.check_compiled, 60, check=True)]
    for teacher in others:
        rows += _short(teacher, sizes)
    rows += [*_sampled(sizes), *_prompts(first), *_students(sizes)]
    if gpu:
        rows += (_compiled(first, size) for size in sizes.compiled_batches)
        rows += map(_compiled_fastest, others)
    return rows


def _limits() -> Iterator[Row]:
    """What the machine can do at most."""
    for precision in ("bfloat16", "float32"):
        name = f"matrix product, {precision}"
        yield Row(name, partial(training.limit_matrix_rate, precision=precision))


def _checks(teacher: str) -> Iterator[Row]:
    """Images that must be the same."""
    yield Row("bfloat16 against float32", checks.check_precision, 30, check=True)
    name = f"{teacher}, one pass in bfloat16 against float32"
    yield Row(name, partial(checks.check_pass, teacher=teacher), 30, check=True)
    yield Row("batch independence", checks.check_batch_independence, check=True)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        name = f"bundled diffusion model in {precision}, against a CPU"
        yield Row(name, partial(checks.check_sampled, precision=precision), check=True)


def _loop(name: str, variant: Variant, seconds: float = 10.0) -> Row:
    """A row of our loop."""
    return Row(name, partial(synthesis.time_variant, variant=variant), seconds)


def _eager(teacher: str, sizes: Sizes) -> Iterator[Row]:
    """The plain loop, and ours from the plainest variant to the fastest eager one."""
    batch = sizes.batches[0]
    plain = partial(synthesis.time_plain_loop, teacher=teacher)
    yield Row(f"{teacher}, plain loop", plain, 20)
    for name, variant in (
        ("no views, channels first", Variant(teacher, batch, "float32", 0, channels_last=False)),
        ("channels first", Variant(teacher, batch, "float32", channels_last=False)),
        ("channels last", Variant(teacher, batch, "float32")),
    ):
        yield _loop(f"{teacher}, float32, {name}", variant)
    yield _loop(f"{teacher}, bfloat16, no views", Variant(teacher, batch, views=0))
    for size in sizes.batches:
        yield _loop(f"{teacher}, bfloat16, batch of {size}", Variant(teacher, size), 15)


def _short(teacher: str, sizes: Sizes) -> Iterator[Row]:
    """The plain loop and the most important eager variants of another teacher."""
    plain = partial(synthesis.time_plain_loop, teacher=teacher)
    yield Row(f"{teacher}, plain loop", plain, 20)
    for size in (sizes.batches[0], sizes.batches[len(sizes.batches) // 2]):
        yield _loop(f"{teacher}, bfloat16, batch of {size}", Variant(teacher, size))


def _sampled(sizes: Sizes) -> Iterator[Row]:
    """Diffusion models: the first one in all its variants, the others as their manifests say."""
    first, *others = sizes.samplers
    middle = sizes.sampled_batches[len(sizes.sampled_batches) // 2]
    for size in sizes.sampled_batches[:-1]:  # a larger batch is not faster in float32
        yield _sample(first, size, "float32")
    for size in sizes.sampled_batches:
        yield _sample(first, size, "bfloat16")
    for sampler in others:
        yield _sample(sampler, middle, "bfloat16")
    profiled = partial(diffusion.profile_sampling, sampler=first, batch=middle)
    yield Row("profile, diffusion", profiled)
    for name in dict.fromkeys(sampler.teacher for sampler in sizes.samplers):
        labels = partial(diffusion.time_labels, name=name, batch=middle)
        yield Row(f"labels of {name}, float32", labels)


def _sample(sampler: Sampler, batch: int, precision: Precision) -> Row:
    """A row of a diffusion model."""
    steps = "1 step" if sampler.steps == 1 else f"{sampler.steps} steps"
    name = f"{sampler.name}, {steps}, {precision}, batch of {batch}"
    measure = partial(
        diffusion.time_sampling,
        sampler=sampler,
        batch=batch,
        precision=precision,
    )
    return Row(name, measure, 20)


def _profile(teacher: str) -> Row:
    """A profile of the fastest eager loop."""

    def measure(kit: Kit) -> Result:
        return synthesis.profile_variant(kit, synthesis.fastest(kit, teacher))

    return Row("profile, eager", measure)


def _prompts(teacher: str) -> Iterator[Row]:
    """Contrastive prompts, after the plain loop."""
    for name, plain in (("plain prompts", True), ("contrastive prompts", False)):
        yield Row(name, partial(training.time_prompts, teacher=teacher, plain=plain), 15)


def _students(sizes: Sizes) -> Iterator[Row]:
    """Distillation of each student, after the plain loop."""
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for student in sizes.students:
        measure = partial(training.time_distillation, student=student)
        yield Row(f"{student}, plain loop", partial(measure, precision="float32", plain=True))
        for precision in precisions:
            yield Row(f"{student}, {precision}", partial(measure, precision=precision))


def _compiled_fastest(teacher: str) -> Row:
    """Speed and profile of our loop, compiled at the batch size of the fastest eager row."""

    def measure(kit: Kit) -> Result:
        variant = synthesis.fastest(kit, teacher, compile=True)
        return synthesis.time_variant(kit, variant, profiled=True)

    return Row(f"{teacher}, compiled, fastest batch", measure, COMPILATION)


def _compiled(teacher: str, batch: int) -> Row:
    """Our loop at a given batch size, compiled."""
    name = f"{teacher}, compiled, batch of {batch}"
    return _loop(name, Variant(teacher, batch, compile=True), COMPILATION)
