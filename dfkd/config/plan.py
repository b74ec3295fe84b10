"""Manifest to tasks: pure functions, so that any worker can derive its own work and seeds."""

import hashlib
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

from dfkd.config.manifest import Manifest
from dfkd.config.methods import has_dependent_images, prompt_method

MAX_EMBEDDING_DIM = 1024
"""Dimensions of the teacher's embedding that an estimate of bytes allows for."""

SAMPLE_OVERHEAD = 8192
"""Bytes of one sample's JSON, prompts, index row and tar headers, rounded up."""


@dataclass(frozen=True)
class Task:
    """One shard's worth of work: images `start .. start + count - 1` of one class."""

    class_index: int
    shard_index: int
    start: int
    count: int

    @property
    def id(self) -> str:
        """The shard's name without its suffix, e.g. `0003-00012`."""
        return f"{self.class_index:04d}-{self.shard_index:05d}"

    @property
    def indices(self) -> range:
        """The image indices within the class."""
        return range(self.start, self.start + self.count)


def tasks(manifest: Manifest) -> Iterator[Task]:
    """Every task of a run, in the order of class and shard."""
    for class_index in range(len(manifest.classes)):
        yield from _class_tasks(manifest, class_index)


def _class_tasks(manifest: Manifest, class_index: int) -> Iterator[Task]:
    total, size = manifest.synthesis.images_per_class, manifest.synthesis.shard_size
    for shard_index, start in enumerate(range(0, total, size)):
        yield Task(class_index, shard_index, start, min(size, total - start))


@dataclass(frozen=True)
class Unit:
    """Tasks that a worker does in one go: one, or the missing ones of a part.

    A part that is made again only for the state that it leaves to the next has no tasks.
    """

    tasks: tuple[Task, ...]
    generated: tuple[Task, ...]
    """Those whose images are made for them: the same, or all of the part."""

    @property
    def id(self) -> str:
        """Unique in a run: that of the first task whose images are made."""
        return self.generated[0].id

    @property
    def part(self) -> int:
        """The shard index that all of its tasks have."""
        return self.generated[0].shard_index

    @property
    def count(self) -> int:
        """Images of all its tasks."""
        return sum(task.count for task in self.tasks)


def units(manifest: Manifest, done: Container[str]) -> Iterator[Unit]:
    """The work that is left of a run: all tasks but those whose ids are `done`.

    Where images depend on each other, the tasks of a part (one shard index, every class) go
    together, in the order of parts; else each is a unit, in the order of class and shard.
    """
    if not has_dependent_images(manifest.method):
        yield from (Unit((task,), (task,)) for task in tasks(manifest) if task.id not in done)
        return
    for together in parts(manifest):
        if missing := tuple(task for task in together if task.id not in done):
            yield Unit(missing, together)


def parts(manifest: Manifest) -> Iterator[tuple[Task, ...]]:
    """The tasks of each part: one shard index, every class."""
    classes = (_class_tasks(manifest, index) for index in range(len(manifest.classes)))
    return zip(*classes, strict=True)


def fresh_tasks(manifest: Manifest) -> Iterator[Task]:
    """The tasks that a regeneration makes anew; all others are carried over.

    Of each class that `regeneration.classes` names the same share of tasks: those with the lowest
    hash under the salt.
    """
    config = manifest.regeneration
    for class_index, name in enumerate(manifest.classes):
        if config.classes and name not in config.classes:
            continue
        lots = {
            task: derive_seed("fresh", *root_seed(manifest), name, task.shard_index)
            for task in _class_tasks(manifest, class_index)
        }
        drawn = sorted(lots, key=lots.__getitem__)[: math.ceil(config.share * len(lots))]
        yield from sorted(drawn, key=lambda task: task.shard_index)


def task_count(manifest: Manifest) -> int:
    """How many tasks `tasks` yields."""
    return len(manifest.classes) * part_count(manifest)


def image_count(manifest: Manifest) -> int:
    """Images of the whole run."""
    return len(manifest.classes) * manifest.synthesis.images_per_class


def estimated_bytes(manifest: Manifest) -> int:
    """Storage that the run's shards take at the most: raw pixels, labels, and tar padding."""
    pixels = 3 * manifest.synthesis.image_size**2
    labels = 4 * len(manifest.classes) + 2 * MAX_EMBEDDING_DIM
    return image_count(manifest) * (pixels + labels + SAMPLE_OVERHEAD)


def steps_per_image(manifest: Manifest) -> int:
    """Steps that each image takes by itself."""
    config = manifest.synthesis
    return max(1, round(config.steps / config.pace))


def latent_learning_rate(manifest: Manifest) -> float:
    """The optimizer's rate in them."""
    return manifest.synthesis.pace * manifest.synthesis.learning_rate


def image_steps(manifest: Manifest) -> int:
    """Optimisation steps of latents, summed over images, of a run with one method.

    0 for the inversion methods, which optimise no latents of ours; what each step shows the teacher
    (`synthesis.views`) is not in it.
    """
    if prompt_method(manifest.method) is None:
        return 0
    return image_count(manifest) * steps_per_image(manifest)


@dataclass(frozen=True)
class PromptRow:
    """The image that a prompt is for."""

    class_index: int
    index: int
    name: str
    seed: int


def part_name(part: int) -> str:
    """The file name, without suffix, of the prompts of shard `part` of every class."""
    return f"{part:05d}"


def part_count(manifest: Manifest) -> int:
    """How many parts the prompts of a run have: the shards of one class."""
    return -(-manifest.synthesis.images_per_class // manifest.synthesis.shard_size)


def parts_at_once(manifest: Manifest) -> int:
    """How many parts may be made side by side."""
    contrastive = prompt_method(manifest.method) == "contrastive"
    return manifest.prompts.contrastive.parallel if contrastive else 1


def part_rows(manifest: Manifest, part: int) -> list[PromptRow]:
    """The images of shard `part` of every class, in the order of class and index."""
    start = part * manifest.synthesis.shard_size
    stop = min(start + manifest.synthesis.shard_size, manifest.synthesis.images_per_class)
    return [
        PromptRow(c, i, name, derive_seed("prompt", *root_seed(manifest), name, i))
        for c, name in enumerate(manifest.classes)
        for i in range(start, stop)
    ]


def sample_key(class_index: int, index: int) -> str:
    """The WebDataset key of one image; holds no dot, which would split it."""
    return f"{class_index:04d}-{index:07d}"


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (sha256).

    Seeds are derived from class names, not positions, and not from the prompt method: adding a
    class changes no other class's latents, and methods are compared from the same ones.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_seed(manifest: Manifest, class_index: int, index: int, attempt: int = 0) -> int:
    """The seed of one image's latent and views; `attempt` counts retries after a divergence."""
    name = manifest.classes[class_index]
    return derive_seed("image", *root_seed(manifest), name, index, attempt)


def root_seed(manifest: Manifest) -> tuple[object, ...]:
    """What every seed of synthesis begins with: the manifest's seed and, if there is one, salt."""
    return (manifest.seed, f"salt {manifest.salt}") if manifest.salt else (manifest.seed,)
