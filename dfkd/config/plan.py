"""The tasks and seeds of a run, as pure functions that every worker can call."""

import itertools
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest

HELD_OUT_SALT = 2**31 - 1
"""Salt of images that no student learns from, for the agreement with the teacher."""

AUDIT_IMAGES = 8
"""Images of a class that an audit makes by default."""

MAX_EMBEDDING_DIM = 1024
"""Usual maximum of the embedding dimension; SAMPLE_OVERHEAD has room for larger ones."""

SAMPLE_OVERHEAD = 8192
"""Upper bound of the bytes of a sample's JSON, prompts, index row and tar headers."""


@dataclass(frozen=True)
class Task:
    """The work for one shard: images `start .. start + count - 1` of one class."""

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
    """Yield the tasks of one class, in the order of shards."""
    total, size = manifest.synthesis.images_per_class, manifest.synthesis.shard_size
    for shard_index, start in enumerate(range(0, total, size)):
        yield Task(class_index, shard_index, start, min(size, total - start))


@dataclass(frozen=True)
class Unit:
    """The work that a worker does at once: missing tasks, and the images that they need."""

    tasks: tuple[Task, ...]
    generated: tuple[Task, ...]
    """Tasks whose images must be generated: the same tasks, or all tasks of the same parts."""

    @property
    def id(self) -> str:
        """The id of the first generated task, which is unique in a run."""
        return self.generated[0].id

    @property
    def part(self) -> int:
        """The largest shard index of its tasks: the last part whose prompts it needs."""
        return max(task.shard_index for task in self.generated)

    @property
    def count(self) -> int:
        """Number of images of all its tasks."""
        return sum(task.count for task in self.tasks)

    def by_part(self) -> "Iterator[Unit]":
        """Yield the unit part by part: what a worker makes one after the other."""
        for part in sorted({task.shard_index for task in self.generated}):
            tasks = tuple(task for task in self.tasks if task.shard_index == part)
            yield Unit(tasks, tuple(each for each in self.generated if each.shard_index == part))


def units(manifest: Manifest, done: Container[str]) -> Iterator[Unit]:
    """The remaining work of a run: all tasks except those whose ids are in `done`.

    They come part by part (one shard index, every class), as their prompts are made. A task is a
    unit, or the tasks of a part, or all of them, as `SourceSettings.scope` says.
    """
    scope = manifest.source.scope
    if scope == "run":
        everything = tuple(tasks(manifest))
        if missing := tuple(task for task in everything if task.id not in done):
            yield Unit(missing, everything)
        return
    for part in parts(manifest):
        missing = tuple(task for task in part if task.id not in done)
        if scope == "image":
            yield from (Unit((task,), (task,)) for task in missing)
        elif missing:
            # Dependent images need the whole part again, even if only one task of it is missing.
            yield Unit(missing, part)


def parts(manifest: Manifest) -> Iterator[tuple[Task, ...]]:
    """The tasks of each part: one shard index, every class."""
    classes = (_class_tasks(manifest, index) for index in range(len(manifest.classes)))
    return zip(*classes, strict=True)


BLOCK_TASKS = 1000
"""About so many tasks are a block."""


def block_name(part: int, classes: int) -> str:
    """The name of the block to which the tasks of a part belong, of a run with so many classes.

    A block is some consecutive parts, so it has images of every class. A version stores together
    what is known of the shards and images of a block.
    """
    return part_name(part // max(1, BLOCK_TASKS // classes))


def blocks(manifest: Manifest) -> Iterator[tuple[str, list[Task]]]:
    """The name and the tasks of each block of a run, its tasks in the order of class and shard."""

    def name(part: tuple[Task, ...]) -> str:
        return block_name(part[0].shard_index, len(manifest.classes))

    for block, chosen in itertools.groupby(parts(manifest), name):
        members = (task for part in chosen for task in part)
        yield block, sorted(members, key=lambda task: (task.class_index, task.shard_index))


def fresh_tasks(manifest: Manifest) -> Iterator[Task]:
    """The tasks that a regeneration makes anew; all others are carried over.

    They are a share of the tasks of each class in `regeneration.classes`, namely those with the
    lowest seeds derived from the salt.
    """
    config = manifest.regeneration
    for class_index, name in enumerate(manifest.classes):
        if config.classes and name not in config.classes:
            continue
        ranks = {
            task: derive_seed("fresh", *root_seed(manifest), name, task.shard_index)
            for task in _class_tasks(manifest, class_index)
        }
        # Rounded first, because 0.07 * 100 is a little more than 7.
        count = max(1, math.ceil(round(config.share * len(ranks), 6)))
        # A new salt gives new ranks, so repeated regenerations replace different tasks.
        selected = sorted(ranks, key=ranks.__getitem__)[:count]
        yield from sorted(selected, key=lambda task: task.shard_index)


def task_count(manifest: Manifest) -> int:
    """Number of tasks of the whole run."""
    return len(manifest.classes) * part_count(manifest)


def image_count(manifest: Manifest) -> int:
    """Number of images of the whole run."""
    return len(manifest.classes) * manifest.synthesis.images_per_class


def estimated_bytes(manifest: Manifest, images: int) -> int:
    """Upper bound of the bytes of `images` in shards: raw pixels, labels, and tar padding."""
    pixels = 3 * manifest.synthesis.image_size**2
    if manifest.synthesis.format == "jpg":
        pixels //= 2  # white noise, which compresses worst, takes 39 % of it
    labels = 4 * len(manifest.classes) + 2 * MAX_EMBEDDING_DIM
    return images * (pixels + labels + SAMPLE_OVERHEAD)


def image_steps(manifest: Manifest) -> int:
    """Optimisation steps of latents in a run with one method, summed over images.

    0 for images that are only sampled, and for sources that follow no prompts. A step counts once,
    however many views (`synthesis.views`) the teacher sees in it.
    """
    if not manifest.source.follows_prompts:
        return 0
    return image_count(manifest) * manifest.generator.settings.optimisation_steps


def sampling_steps(manifest: Manifest) -> int:
    """Steps of a diffusion model in a run with one method, summed over images; 0 without one."""
    if not manifest.source.follows_prompts:
        return 0
    return image_count(manifest) * manifest.generator.settings.sampling_steps


@dataclass(frozen=True)
class PromptRow:
    """An image that needs a prompt."""

    class_index: int
    index: int
    """Number of the image within the class."""
    name: str
    """The class, as labels and results call it."""
    meaning: str
    """The class, as the prompt calls it."""
    seed: int
    """Of the prompt."""


@dataclass(frozen=True)
class PromptPart:
    """The prompts of one shard of every class: a unit of work."""

    number: int

    @property
    def id(self) -> str:
        """The part's name in messages."""
        return f"prompts {part_name(self.number)}"


@dataclass(frozen=True)
class PromptSummary:
    """The statistics over all prompts of a version: the last unit of work on them."""

    id: str = "prompts summary"


def part_name(part: int) -> str:
    """The file name, without suffix, of the prompts of shard `part` of every class."""
    return f"{part:05d}"


def part_count(manifest: Manifest) -> int:
    """Number of parts of a run, which is the number of shards of a class."""
    return -(-manifest.synthesis.images_per_class // manifest.synthesis.shard_size)


def part_rows(manifest: Manifest, part: int) -> list[PromptRow]:
    """The images of shard `part` of every class, in the order of class and index."""
    start = part * manifest.synthesis.shard_size
    stop = min(start + manifest.synthesis.shard_size, manifest.synthesis.images_per_class)
    return [
        PromptRow(c, i, name, meaning, derive_seed("prompt", *root_seed(manifest), name, i))
        for c, (name, meaning) in enumerate(zip(manifest.classes, manifest.meanings, strict=True))
        for i in range(start, stop)
    ]


def image_seed(manifest: Manifest, class_index: int, index: int, attempt: int = 0) -> int:
    """The seed of an image's latent and views; `attempt` is the number of divergences before.

    It is derived from the class name instead of the position, so adding a class does not change the
    latents of others. It does not depend on the prompt method, so all methods start from the same
    latents.
    """
    name = manifest.classes[class_index]
    return derive_seed("image", *root_seed(manifest), name, index, attempt)


def root_seed(manifest: Manifest) -> tuple[object, ...]:
    """The common first parts of all seeds of synthesis: the manifest's seed and a nonzero salt."""
    return (manifest.seed, f"salt {manifest.salt}") if manifest.salt else (manifest.seed,)
