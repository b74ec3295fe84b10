"""Rows that compare images: how much precision, other images in the batch and compilation change.

`tests/synthesis/test_latents.py` states the tolerances for the bundled models, which are trained.
So these are compared after some steps. With the random weights of the real architectures a gradient
is little more than noise, and Adam's first steps enlarge any rounding of it. So of these only one
pass is compared.
"""

import torch

from dfkd.config.paths import MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.config.synthesis import GeneratorConfig, Synthesis, TeacherConfig
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition
from dfkd.models.teacher import Teacher
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.request import Synthesised
from dfkd.utils.types import Precision

STEPS = 3
"""Steps after which images of the bundled models are compared."""
SIZE = 64
"""Side of their images in pixels."""
TEXTS = ("A dog", "A cat", "A house", "A tree")
BATCH = len(TEXTS)
LEVELS, DISTANCE = 3.0, 0.02
"""In bfloat16: mean difference of pixels in levels of 255, and difference of a distance."""
COMPILED_LEVELS, COMPILED_DISTANCE = 0.05, 0.02
"""The same for compiled steps."""
MAX_SHARE = 0.01
"""Share of the pixels of an image made alone that may differ by more than one level."""


def check_precision(kit: Kit) -> Result:
    """Images of the bundled models in bfloat16 against float32.

    Without quantisation, because a code is chosen or not, and rounding may change a whole cell.
    """
    one, two = (
        _make(_bundled(kit, precision, quantise=False)) for precision in ("float32", "bfloat16")
    )
    return _within(one, two, LEVELS, DISTANCE)


def check_pass(kit: Kit, teacher: str) -> Result:
    """One pass of a real architecture in bfloat16 against float32: image and distance."""
    config = Synthesis(image_size=kit.sizes.image_size, quantise=False)
    one, two = (
        _make(Synthesiser(kit.teacher(teacher, each), kit.generator(each), config, steps=0))
        for each in ("float32", "bfloat16")
    )
    return _within(one, two, LEVELS, DISTANCE)


def check_batch_independence(kit: Kit) -> Result:
    """One image in a batch and alone, which may differ by rounding.

    It may do so in a share of its pixels below `MAX_SHARE`.
    """
    synthesiser = _bundled(kit)
    targets = kit.targets(synthesiser.teacher, BATCH)
    together = synthesiser(targets, range(BATCH)).pixels[1]
    alone = synthesiser(targets[1:2], [1]).pixels[0]
    share = float(((together.int() - alone.int()).abs() > 1).float().mean())
    return {
        "passed": share < MAX_SHARE,
        "remark": f"alone {share:.2%} of the values differ by more than one level "
        f"(< {MAX_SHARE:.0%})",
    }


def check_compiled(kit: Kit) -> Result:
    """Compiled images of the bundled models against eager ones, in float32."""
    one, two = (_make(_bundled(kit, compile=switch)) for switch in (False, True))
    return _within(one, two, COMPILED_LEVELS, COMPILED_DISTANCE)


def check_sampled(kit: Kit, precision: Precision) -> Result:
    """Images that the bundled diffusion model samples here against the CPU's in float32."""
    exact = _sampled(torch.device("cpu"), "float32")
    return _within(exact, _sampled(kit.device, precision), LEVELS, DISTANCE)


def _bundled(
    kit: Kit, precision: Precision = "float32", quantise: bool = True, compile: bool = False
) -> Synthesiser:
    """The loop of the bundled models."""
    config = Synthesis(image_size=SIZE, batch_size=BATCH, quantise=quantise, compile=compile)
    return Synthesiser(*kit.bundled(precision), config, STEPS)


@torch.no_grad()
def _sampled(device: torch.device, precision: Precision) -> Synthesised:
    """A batch of some classes from the bundled diffusion model, guided as it is by default."""
    teacher = Teacher.load(TeacherConfig(model=MINIATURE, weights=MINIATURE), device)
    own = PIPELINES[MINIATURE]
    config = GeneratorConfig(kind="diffusers", weights=MINIATURE, guidance=own.guidance)
    generator = Diffusion.load(config, device, precision, steps=own.steps)
    layers = generator.encoder.input.layers
    states = teacher.hidden_states(teacher.embed_tokens(teacher.tokenize(["", *TEXTS])), layers)
    synthesiser = Synthesiser(teacher, generator, Synthesis(image_size=SIZE), steps=0)
    targets = teacher.encode_text(TEXTS)
    return synthesiser(targets, range(BATCH), condition=Condition(states[1:], states[:1]))


def _make(synthesiser: Synthesiser) -> Synthesised:
    """A batch of some classes."""
    return synthesiser(synthesiser.teacher.encode_text(TEXTS), range(BATCH))


def _within(one: Synthesised, two: Synthesised, levels: float, distance: float) -> Result:
    """Whether two batches agree within a mean difference of pixels and one of distances."""
    pixels = float((one.pixels.int() - two.pixels.int()).abs().float().mean())
    losses = float((one.losses - two.losses).abs().max())
    return {
        "passed": pixels < levels and losses < distance,
        "remark": f"pixels differ by {pixels:.3f} levels (< {levels:g}), "
        f"distances by {losses:.5f} (< {distance:g})",
    }
