"""What the images and students of a run cost at least, before any of them is made.

Operations and traffic of memory are counted on tensors without data, which takes seconds. At a
device's peaks (`DEVICES`) they give a bound, not a forecast: no run reaches them.

    products   matrix products, convolutions, attention: FLOP / peak, or traffic / bandwidth
    others     all other kernels, which read inputs and write outputs: traffic / bandwidth

Kernels that are not compiled run one after the other, so computing and moving add. A compiler fuses
the others into the products, which move their own inputs and outputs while they compute: what is
left is the larger of the two times.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count
from dfkd.models import teacher_architecture
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition, Generator
from dfkd.models.student import Student
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.pseudo_words import PseudoWords, Sentences
from dfkd.prompts.settings import Contrastive
from dfkd.synthesis.latents import view_distances
from dfkd.synthesis.views import Views
from dfkd.utils.progress import say
from dfkd.utils.types import Precision


@dataclass(frozen=True)
class Device:
    """A GPU's peaks by its maker's data sheet: dense, without TF32."""

    name: str
    pattern: str
    """Of the name that the driver gives; a slower card of the same name has the same bound."""
    flops: Mapping[Precision, float]
    """Floating-point operations a second."""
    bandwidth: float
    """Bytes of memory a second."""


H100 = Device("H100", r"\bH100\b", {"bfloat16": 989e12, "float32": 67e12}, 3.35e12)
"""NVIDIA H100 SXM."""
A100 = Device("A100", r"\bA100\b", {"bfloat16": 312e12, "float32": 19.5e12}, 2.04e12)
"""NVIDIA A100 SXM, 80 GB."""
L4 = Device("L4", r"\bL4\b", {"bfloat16": 121e12, "float32": 30.3e12}, 0.3e12)
"""NVIDIA L4."""
DEVICES = (H100, A100, L4)
COUNTS = (2, 3)
"""Images that are counted: one alone has no statistics for batch norm."""
BYTES: Mapping[Precision, int] = {"bfloat16": 2, "float32": 4}
"""Of a number. With bfloat16 some kernels still move float32, which the bound leaves out."""


@dataclass(frozen=True)
class Work:
    """Operations and memory traffic."""

    flop: float
    """Floating-point operations of products."""
    products: float
    """Numbers that products read and write."""
    others: float
    """Numbers that all other kernels read and write."""
    precision: Precision = "float32"
    compiled: bool = False

    def __mul__(self, times: float) -> "Work":
        """The same work several times."""
        flop, products, others = self.flop * times, self.products * times, self.others * times
        return dataclasses.replace(self, flop=flop, products=products, others=others)

    def seconds(self, device: Device) -> float:
        """The least time on a device."""
        move = BYTES[self.precision] / device.bandwidth
        products = max(self.flop / device.flops[self.precision], move * self.products)
        return products + (0 if self.compiled else move * self.others)


def synthesis(manifest: Manifest, teacher: Teacher, generator: Generator | None) -> dict[str, Any]:
    """What all images cost at least: the `summary` of `synthesis_work`.

    Conventional methods, whose images are left out, are named in `without`.
    """
    say("counting the operations of an image")
    singles = [manifest.with_method(method) for method in manifest.methods]
    left_out = [each.method for each in singles if not each.source.follows_prompts]
    found = summary(synthesis_work(manifest, teacher, generator) if generator else [])
    return found | ({"without": left_out} if left_out else {})


def labellers(manifest: Manifest) -> dict[str, Any]:
    """What live labels cost at each step of a student: of each model that labels, by its name,
    parameters, their bytes, and `tflop_per_step`, with `seconds_per_step_at_least` on the device
    that `bound_of` names. Empty if the labels are stored.
    """
    config, found = manifest.distillation, dict[str, Any]()
    if config.stored_labels:
        return found
    device, _ = _device_here()
    for name, section in manifest.labellers.items():
        work = label_work(section.model) * config.batch_size
        with torch.device("meta"):
            built = teacher_architecture.build(
                teacher_architecture.read_architecture(section.model)
            )
        parameters = sum(each.numel() for each in built.get_submodule("visual").parameters())
        found[name] = {
            "parameters": parameters,
            "gigabytes": _rounded(BYTES["float32"] * parameters / 1e9),
            "tflop_per_step": _rounded(work.flop / 1e12),
            "seconds_per_step_at_least": _rounded(work.seconds(device)),
        }
    return found


def students(
    manifest: Manifest, built: Sequence[Student], steps: int, warmup: int
) -> dict[str, Any]:
    """What all students cost at least: the `summary` of `student_work`.

    Args:
        built: an untrained one for each of `distillation.student`.
    """
    works, methods = [], len(manifest.methods)
    for student in built:
        count = methods * len(manifest.distillation.seeds)
        works += [work * count for work in student_work(manifest, student, steps, warmup)]
        methods = 1  # the first is trained for each method, the others for the last one
    return summary(works)


def summary(works: Sequence[Work]) -> dict[str, Any]:
    """`tflop`, and `gpu_hours_at_least` on the device that `bound_of` names: the one that is here,
    or an H100.
    """
    device, reason = _device_here()
    return {
        "tflop": _rounded(sum(work.flop for work in works) / 1e12),
        "gpu_hours_at_least": _rounded(sum(work.seconds(device) for work in works) / 3600),
        "bound_of": f"{device.name} at its peaks{reason}",
    }


def _device_here() -> tuple[Device, str]:
    """`device_of` of the GPU that is here."""
    return device_of(torch.cuda.get_device_name() if torch.cuda.is_available() else "")


def device_of(gpu: str) -> tuple[Device, str]:
    """The device of the name that a driver gives, or an H100 and why.

    Args:
        gpu: empty if there is none.
    """
    for device in DEVICES:
        if re.search(device.pattern, gpu):
            return device, ""
    return H100, f", as those of {gpu} are unknown" if gpu else ", as no GPU is here"


def _rounded(value: float) -> float:
    """The value with three digits."""
    return float(f"{value:.3g}")


def synthesis_work(manifest: Manifest, teacher: Teacher, generator: Generator) -> list[Work]:
    """The work of all images with a prompt, of their labels, and of contrastive prompts.

    Args:
        teacher, generator: on the CPU, in float32.
    """
    singles = [manifest.with_method(method) for method in manifest.methods]
    followed = [each for each in singles if each.source.follows_prompts]
    works, images = images_work(manifest, teacher, generator), image_count(manifest)
    made = [work * (images * len(followed)) for work in works]
    for each in followed:
        if isinstance(each.prompt_settings, Contrastive):
            made += [work * images for work in prompts_work(each, teacher, each.prompt_settings)]
    return made


def images_work(manifest: Manifest, teacher: Teacher, generator: Generator) -> list[Work]:
    """The work of one image and its label."""
    config, steps = manifest.synthesis, manifest.generator.settings.optimisation_steps
    side, works = teacher.image_size, []

    def step(images: int) -> None:
        """The distance of each image to its prompt, and its gradient."""
        views = Views(range(images), 1, config.views, config.view_noise, side, torch.device("cpu"))
        drawn = views.draw(0)
        latents = _latents(generator, images, config.image_size).requires_grad_()
        targets = _blank(images, teacher.embedding_dim)
        losses = view_distances(latents, targets, drawn, teacher, generator, config.image_size)
        torch.autograd.grad(losses.sum(), [latents])

    if isinstance(generator, Diffusion):
        works += _sampling(generator, config.precision)
    if steps:
        made = counted(step) * steps
        works.append(dataclasses.replace(made, precision=config.precision, compiled=config.compile))
    return [*works, label_work(manifest.teacher.model)]


def _sampling(generator: Diffusion, precision: Precision) -> list[Work]:
    """The work of sampling one image, and of decoding it."""
    generator.scheduler.set_timesteps(generator.steps)
    times = generator.scheduler.timesteps
    width = generator.encoder.shape.hidden_size

    @torch.no_grad()
    def predict(images: int) -> None:
        condition = Condition(_blank(images, 77, width), _blank(1, 77, width))
        generator.predict(_latents(generator, images, 0), times[0], condition)

    @torch.no_grad()
    def decode(images: int) -> None:
        generator.decode(_latents(generator, images, 0))

    works = counted(predict) * len(times), counted(decode)
    return [dataclasses.replace(work, precision=precision) for work in works]


def prompts_work(manifest: Manifest, teacher: Teacher, config: Contrastive) -> list[Work]:
    """The work of one contrastive prompt, which is made in float32, without the bank's products."""
    draw = np.random.default_rng(0)
    words = PseudoWords(teacher, manifest.prompts.template)
    classes = manifest.meanings
    names = {count: [classes[row % len(classes)] for row in range(count)] for count in COUNTS}
    # The lengths of sentences are numbers, so tokens have data; pseudo-words have none.
    plain = {count: words.sentences(each) for count, each in names.items()}
    disturbed: dict[int, Sentences] = {}

    def prepare(prompts: int) -> None:
        share = contrastive.DISTURBANCE
        tokens = words.disturbed(names[prompts], "shuffle", share, draw)
        disturbed[prompts] = Sentences(teacher, *tokens)

    def update(prompts: int) -> None:
        pseudo_words = _blank(prompts, teacher.token_table.shape[1]).requires_grad_()
        both = plain[prompts], disturbed[prompts]
        texts, positives = (each.encode(pseudo_words) for each in both)
        torch.autograd.grad((texts * positives).sum(), [pseudo_words])

    works = counted(prepare, without_data=False), counted(update)
    return [work * config.updates for work in works]


def student_work(manifest: Manifest, student: Student, steps: int, warmup: int) -> list[Work]:
    """The work of a student: its steps, and live labels in float32.

    Args:
        student: an untrained one; its weights are gone afterwards.
        steps: optimizer steps in both phases.
        warmup: those of them that train the head alone.
    """
    config, size = manifest.distillation, manifest.synthesis.image_size
    student = student.to("meta").train()

    def step(images: int) -> None:
        student.head(student.features(_meta(images, size))).sum().backward()

    @torch.no_grad()
    def forward(images: int) -> None:
        student.head(student.features(_meta(images, size)))

    works = [
        dataclasses.replace(counted(call, without_data=False) * times, precision=config.precision)
        for call, times in ((forward, warmup), (step, steps - warmup))
    ]
    if not config.stored_labels:
        works += [label_work(each.model) * steps for each in manifest.labellers.values()]
    return [work * config.batch_size for work in works]


def label_work(model: str) -> Work:
    """The work of a label of an open_clip model, which is made in float32; no weights are read."""
    architecture = teacher_architecture.read_architecture(model)
    with torch.device("meta"):
        tower: Any = teacher_architecture.build(architecture).get_submodule("visual")
    side = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]

    @torch.no_grad()
    def label(images: int) -> None:
        tower(_meta(images, side))

    return counted(label, without_data=False)


def counted(call: Callable[[int], object], without_data: bool = True) -> Work:
    """What one more image costs a call that takes a number of images, in float32 and not compiled.

    It is the difference between the calls of `COUNTS`, so what a batch shares, such as reading the
    weights, is not counted.

    Args:
        without_data: whether nothing is computed, not even from tensors with data.
    """
    two, three = _Counter(), _Counter()
    for number, counter in zip(COUNTS, (two, three), strict=True):
        with NO_DATA if without_data else contextlib.nullcontext(), counter:
            call(number)
    return Work(three.flop - two.flop, three.products - two.products, three.others - two.others)


class _Counter(TorchDispatchMode):
    """Counts what runs inside its block."""

    flop = products = others = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation of ATen."""
        options = dict(kwargs or {})
        found = func(*args, **options)
        moved = sum(map(_stored, tree_iter((args, options, found))))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flop += formula(*args, **options, out_val=found)
            self.products += moved
        # A view moves nothing.
        elif func.namespace == "aten" and not (func.is_view or func in _VIEWS):
            self.others += moved
        return found


def _stored(value: object) -> int:
    """The numbers that a tensor holds, each counted once where it is expanded; 0 of others."""
    if not isinstance(value, Tensor):
        return 0
    return math.prod(
        size for size, stride in zip(value.shape, value.stride(), strict=True) if stride
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    """Operations of an attention."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    """Operations of its gradient."""
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The operations of each product; torch lacks those of attention on a CPU."""

_VIEWS = (torch.ops.aten._unsafe_view.default,)
"""Views that torch does not call so."""

NO_DATA = FakeTensorMode(allow_non_fake_inputs=True)
"""Its tensors have a shape and no data, and so has all that is computed from them."""


def _blank(*shape: int) -> Tensor:
    """A float32 tensor without data that says it is on the CPU."""
    with NO_DATA:
        return torch.empty(shape)


def _meta(images: int, side: int) -> Tensor:
    """Pixels without data on the device of networks without weights."""
    return torch.empty(images, 3, side, side, device="meta")


def _latents(generator: Generator, images: int, size: int) -> Tensor:
    """Latents without data, of the generator's shape."""
    if isinstance(generator, Diffusion):
        side = generator.unet.config.sample_size
        return _blank(images, generator.unet.config.in_channels, side, side)
    return _blank(*generator.init_latents(range(images), size).shape)
