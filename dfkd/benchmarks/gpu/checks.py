"""Rows that compare images: what precision, batch and compilation may change, and by how much.

The tolerances are those that the tests of synthesis state for the bundled models
(`tests/synthesis/test_latents.py`).
"""

import dataclasses

from torch import Tensor

from dfkd.benchmarks.gpu.kit import Kit, Result
from dfkd.benchmarks.gpu.synthesis import Variant
from dfkd.config.synthesis import Synthesis
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.request import Synthesised

STEPS = 3
"""Steps after which images are compared; later ones enlarge any difference."""
BATCH = 4
LEVELS, DISTANCE = 3.0, 0.02
"""Mean difference of pixels in levels of 255, and difference of a distance, in another precision or
compiled."""
MAX_SHARE = 0.01
"""Share of the pixels of an image made alone that may differ by more than one level."""


def check_precision(kit: Kit, teacher: str) -> Result:
    """Images in bfloat16 against those in float32, without quantisation.

    A code is chosen or not, so with quantisation rounding may change a whole cell.
    """
    config = Synthesis(image_size=kit.sizes.image_size, quantise=False)
    made = []
    for precision in ("float32", "bfloat16"):
        clip, generator = kit.teacher(teacher, precision), kit.generator(precision)
        made.append(_run(Synthesiser(clip, generator, config, STEPS), kit.targets(clip, BATCH)))
    return _compared(*made)


def check_independence(kit: Kit, teacher: str) -> Result:
    """An image does not depend on the others of its batch, and hardly on their number."""
    clip, generator = kit.teacher(teacher), kit.generator()
    synthesiser = Synthesiser(clip, generator, Synthesis(image_size=kit.sizes.image_size), STEPS)
    targets = kit.targets(clip, BATCH)
    together = synthesiser(targets, range(BATCH))
    # Row 1 keeps its prompt and its seed; all others get new ones.
    company = synthesiser(targets[[2, 1, 0, 2]], [9, 1, 8, 7])
    alone = synthesiser(targets[1:2], [1])
    equal = bool((together.pixels[1] == company.pixels[1]).all())
    difference = (together.pixels[1].int() - alone.pixels[0].int()).abs()
    share = float((difference > 1).float().mean())
    words = "equal to the bit" if equal else "not equal"
    return {
        "passed": equal and share < MAX_SHARE,
        "remark": f"{words} in other company; alone {share:.2%} of the pixels differ by more than "
        f"one level (< {MAX_SHARE:.0%})",
    }


def check_compiled(kit: Kit, variant: Variant, compiled: Synthesiser) -> Result:
    """Compiled images against eager ones in the same precision.

    Args:
        variant: the compiled one.
        compiled: its loop.
    """
    eager = dataclasses.replace(variant, mode="eager").synthesiser(kit, STEPS)
    compiled.steps = STEPS
    targets = kit.targets(eager.teacher, variant.batch)
    return _compared(_run(eager, targets), _run(compiled, targets))


def _run(synthesiser: Synthesiser, targets: Tensor) -> Synthesised:
    return synthesiser(targets, range(len(targets)))


def _compared(one: Synthesised, two: Synthesised) -> Result:
    """Whether two batches agree within `LEVELS` and `DISTANCE`."""
    levels = float((one.pixels.int() - two.pixels.int()).abs().float().mean())
    distance = float((one.losses - two.losses).abs().max())
    return {
        "passed": levels < LEVELS and distance < DISTANCE,
        "remark": f"pixels differ by {levels:.3f} levels (< {LEVELS:g}), "
        f"distances by {distance:.4f} (< {DISTANCE:g})",
    }
