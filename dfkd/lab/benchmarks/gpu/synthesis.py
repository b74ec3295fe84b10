"""Rows about synthesis: the plain loop, our loop in its variants, and a profile of the best one."""

import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass, replace

from torch import Tensor

from dfkd.config.synthesis import Synthesis
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.measure import Figure, operations, profile
from dfkd.synthesis.latents import Synthesiser
from dfkd.utils.types import Precision

STEPS = 500
"""Steps of an image for which images per hour are computed; the paper's number."""
UNIT = f"images/h at {STEPS} steps"
LIMIT = "bf16 product"
VIEWS = Synthesis().views
PROFILED_STEPS = 4


@dataclass(frozen=True)
class Variant:
    """A way to run our loop."""

    teacher: str
    batch: int
    precision: Precision = "bfloat16"
    views: int = VIEWS
    compile: bool = False
    """As `synthesis.compile`."""
    channels_last: bool = True
    """Whether weights have the layout of a job; otherwise that of the networks' authors."""

    @property
    def usual(self) -> bool:
        """Whether a job on a GPU uses these settings by default, with or without `compile`."""
        default = Variant(self.teacher, self.batch)
        return self in (default, replace(default, compile=True))

    def synthesiser(self, kit: Kit, steps: int = PROFILED_STEPS) -> Synthesiser:
        """Our loop with this many steps; compiled at its first call."""
        config = Synthesis(
            image_size=kit.sizes.image_size,
            batch_size=self.batch,  # only full batches are compiled
            views=self.views,
            precision=self.precision,
            compile=self.compile,
        )
        if not self.channels_last:
            # Not new objects, because `Teacher` and `VQGAN` set the layout when they are made.
            return Synthesiser(*kit.published(self.teacher), config, steps)
        generator = kit.generator(self.precision)
        teacher = kit.teacher(self.teacher, self.precision)
        return Synthesiser(teacher, generator, config, steps)


def time_plain_loop(kit: Kit, teacher: str) -> Result:
    """The paper's loop in float32, at its batch size."""
    sizes, batch = kit.sizes, min(reference.BATCH, kit.sizes.batches[-1])
    clip, generator = kit.published(teacher)
    targets = kit.targets(clip, batch)

    def call() -> float:
        reference.plain_loop(clip, generator, targets, sizes.image_size, sizes.window_steps)
        return float(sizes.window_steps * batch)

    hourly = [3600 * rate / STEPS for rate in kit.rates(call)]
    figure = Figure("", UNIT, tuple(hourly)).as_dict()
    kit.plain[teacher] = figure["median"]
    return {"figure": figure, "batch": batch}


def time_variant(kit: Kit, variant: Variant, profiled: bool = False) -> Result:
    """Images per hour of our loop, as a job runs it.

    Args:
        profiled: add what `profile_variant` finds, of the same loop.

    Returns:
        `figure`; `batch`; `step_seconds`; `rest_seconds`, those of a call that are in no step; and
        `step_flop`, operations of a step.
    """
    synthesiser = variant.synthesiser(kit)
    targets = kit.targets(synthesiser.teacher, variant.batch)
    synthesiser(targets, range(variant.batch))  # kernel selection and compilation
    steps, rest = _step_seconds(kit, synthesiser, targets)
    step = statistics.median(steps)
    flop = variant.batch * _cost(kit, variant)
    hourly = [3600 * variant.batch / (rest + (STEPS - 1) * seconds) for seconds in steps]
    figure = _figure(kit, variant, hourly, flop / step)
    found: Result = {
        "figure": figure,
        "batch": variant.batch,
        "step_seconds": step,
        "rest_seconds": rest,
        "step_flop": flop,
    }
    # Later rows use the batch size of the fastest eager loop.
    if variant.usual and not variant.compile:
        best = figure["median"], variant.batch
        kit.fastest[variant.teacher] = max(best, kit.fastest.get(variant.teacher, best))
    if profiled:
        # The speed is worth keeping without a profile.
        with contextlib.suppress(RuntimeError):
            found |= _profile(synthesiser, targets)
    return found


def _figure(kit: Kit, variant: Variant, hourly: list[float], rate: float) -> Result:
    """Images per hour, compared with the matrix product and the plain loop of earlier rows.

    Args:
        rate: operations per second of a step.
    """
    plain = kit.plain.get(variant.teacher)
    return Figure(
        "",
        UNIT,
        tuple(hourly),
        limit=LIMIT,
        share=rate / kit.matrix_rate if kit.matrix_rate else None,
        peer="plain loop",
        ratio=statistics.median(hourly) / plain if plain else None,
    ).as_dict()


def fastest(kit: Kit, teacher: str, compile: bool = False) -> Variant:
    """The variant of a teacher at the batch size of its fastest eager row."""
    if teacher not in kit.fastest:
        raise RuntimeError(
            "no eager row of this teacher has a result; read the errors of those rows"
        )
    return Variant(teacher, kit.fastest[teacher][1], compile=compile)


def _step_seconds(kit: Kit, synthesiser: Synthesiser, targets: Tensor) -> tuple[list[float], float]:
    """Seconds of a step in each window, and those of a call that are in no step."""
    sizes, marks = kit.sizes, list[float]()

    def mark(step: int, losses: Tensor) -> None:
        if step % sizes.window_steps == 0:
            kit.synchronise()
            marks.append(time.perf_counter())

    synthesiser.steps = sizes.windows * sizes.window_steps + 1
    begun = time.perf_counter()
    made = synthesiser(targets, range(len(targets)), mark)
    whole = time.perf_counter() - begun
    if bool(made.diverged.any()):
        raise RuntimeError("images diverged, so a step was not a whole one")
    windows = itertools.pairwise(marks)
    steps = [(end - start) / sizes.window_steps for start, end in windows]
    return steps, whole - (marks[-1] - marks[0])


def _cost(kit: Kit, variant: Variant) -> float:
    """Operations of a step of one image, counted in an eager loop."""
    key = variant.teacher, variant.precision, variant.views
    if key not in kit.costs:
        eager = replace(variant, batch=kit.sizes.batches[0], compile=False)
        few, more = (_counted(kit, eager, steps) for steps in (2, 3))
        # The first pass and the final image are in both, so the difference is one whole step.
        kit.costs[key] = (more - few) / eager.batch
    return kit.costs[key]


def _counted(kit: Kit, variant: Variant, steps: int) -> int:
    """Operations of a call with so many steps."""
    synthesiser = variant.synthesiser(kit, steps)
    targets = kit.targets(synthesiser.teacher, variant.batch)
    return operations(lambda: synthesiser(targets, range(variant.batch)))


def profile_variant(kit: Kit, variant: Variant) -> Result:
    """Seconds by kernel of some steps; a second call is profiled."""
    synthesiser = variant.synthesiser(kit)
    return _profile(synthesiser, kit.targets(synthesiser.teacher, variant.batch))


def _profile(synthesiser: Synthesiser, targets: Tensor) -> Result:
    """See `profile_variant`."""
    synthesiser.steps = PROFILED_STEPS
    return {
        "batch": len(targets),
        "profile": profile(lambda: synthesiser(targets, range(len(targets)))),
        "remark": f"profile of {PROFILED_STEPS} steps",
    }
