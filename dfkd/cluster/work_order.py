"""Choose what the workers of a synthesis start next: prompts, then images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from dfkd.config.manifest import Manifest
from dfkd.config.plan import (
    PromptPart,
    PromptSummary,
    Unit,
    part_count,
    part_name,
)
from dfkd.dataset.versions import Version
from dfkd.storage import layout
from dfkd.utils.progress import Closing, Progress, bar

_END: Any = object()
"""What `next` returns for an iterator that has ended; None means that nothing is ready."""


@dataclass
class PromptProgress(Closing):
    """Which parts of a version's prompts are stored, with a bar while some are missing."""

    manifest: Manifest
    done: set[int]
    """Numbers of the stored parts."""
    bar: Progress | None
    """None if all parts and prompts.json were stored at the start."""

    @classmethod
    def of(cls, manifest: Manifest, version: Version) -> Self:
        """What is in storage: a kill loses only the parts in progress."""
        names, total = version.prompt_parts(), part_count(manifest)
        done = {number for number in range(total) if part_name(number) in names}
        # prompts.json is written after all parts; one that is missing now was damaged and deleted.
        if len(done) == total and version.storage.exists(layout.PROMPTS_SUMMARY):
            return cls(manifest, done, None)
        return cls(manifest, done, bar(f"{manifest.method} prompts", total, "part", len(done)))

    def record(self, part: int | None) -> None:
        """Count a finished part; None is the summary, which comes last."""
        if part is None:
            self.close()
        elif self.bar:
            self.done.add(part)
            self.bar.update()

    def close(self) -> None:
        """Leave the bar as it is on the screen."""
        if self.bar:
            self.bar.close()
            self.bar = None

    def ready(self) -> Iterator[PromptPart | PromptSummary | None]:
        """Yield each missing part when all earlier ones are done, and then the summary; None until
        then."""
        if self.bar is None:
            return
        total = part_count(self.manifest)
        parts = [PromptPart(number) for number in range(total) if number not in self.done]
        missing: list[PromptPart | PromptSummary] = [*parts, PromptSummary()]
        known = 0  # parts 0 .. known - 1 are done
        for unit in missing:
            needed = unit.number if isinstance(unit, PromptPart) else total
            while True:
                while known in self.done:
                    known += 1
                if known >= needed:
                    break
                yield None  # the engine asks again when a part has been made
            yield unit


def ready_work(
    prompts: PromptProgress, images: Iterator[Unit], failed: Callable[[], bool]
) -> Iterator[PromptPart | PromptSummary | Unit | None]:
    """Yield what workers can do next, and None when they must wait for what is in progress.

    Args:
        images: the units in the order of their parts.
        failed: whether a part of the prompts has failed, so that all the rest is in vain.
    """
    parts = prompts.ready()
    unit = None
    while not failed():
        # Prompts first: images wait for prompts, and prompts never wait for images.
        part = next(parts, _END)
        if part not in (None, _END):
            yield part
            continue
        unit = unit or next(images, _END)
        if part is _END and unit is _END:
            return
        if unit not in (None, _END) and unit.part in prompts.done:
            yield unit
            unit = None
        else:
            yield None
