"""Memory really runs out: the batch is halved and noted, and the shard is as it would have been."""

import faulthandler
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dfkd.cluster.making import identify
from dfkd.cluster.worker import Worker
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptPart, units
from dfkd.dataset.versions import begin
from dfkd.storage.local import open_storage
from dfkd.synthesis.image_source import Synthesised
from dfkd.synthesis.latents import LatentSource
from tests.helpers import small_manifest
from tests.helpers.workers import own_worker

pytestmark = pytest.mark.faults

HEADROOM = 480 << 20
"""Bytes beside loaded models: room for some images at once, but not for `IMAGES`. With so many,
the allocation that fails is one of many MiB, so the interpreter still finds what it needs."""
IMAGES = 64


def write(folder: Path) -> Path:
    sizes = {"images_per_class": IMAGES + 1, "shard_size": IMAGES, "batch_size": IMAGES}
    return small_manifest.write(
        folder,
        storage={"root": str(folder / "run")},
        prompts={"method": "vanilla"},
        synthesis={**sizes, "image_size": 64, "views": 0},
    )


def limited_synthesis(synthesise: Callable[..., Synthesised]) -> Callable[..., Synthesised]:
    """The same in `HEADROOM`. Elsewhere memory is not limited: a thread that cannot start hangs."""

    def limited(*arguments: Any) -> Synthesised:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))
        try:
            return synthesise(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    return limited


def synthesise(file: str, name: str, batch: int, limited: bool) -> tuple[bytes, tuple[str, ...]]:
    """Make a shard of `IMAGES` in a process of its own; its bytes and the worker's notes."""
    # Memory that runs out in C code can leave a lock behind. The process then says where, and ends.
    faulthandler.dump_traceback_later(300, exit=True)
    settings = (f"synthesis.batch_size={batch}", "generator.vqgan.steps=1")
    manifest = Manifest.read(file, settings)
    version = begin(open_storage(manifest.storage.root).child(name), identify(manifest))
    for part in range(2):
        own_worker(manifest, version, Worker).run(PromptPart(part))
    whole, single = list(units(manifest, ()))[:2]
    worker = own_worker(manifest, version, Worker)
    worker.run(single)  # loads the models
    if limited:
        LatentSource.make = limited_synthesis(LatentSource.make)  # type: ignore[method-assign]
    done = worker.run(whole)
    return version.storage.get(done.result[0][0].shard), done.notes


def test_a_batch_that_memory_has_no_room_for_is_halved_and_noted(tmp_path: Path) -> None:
    file = str(write(tmp_path))

    def alone(*arguments: object) -> tuple[bytes, tuple[str, ...]]:
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            return process.submit(synthesise, file, *arguments).result()  # type: ignore[arg-type]

    shard, notes = alone("limited", IMAGES, True)
    sizes = [int(note.rpartition("at most ")[2].split()[0]) for note in notes]
    assert sizes
    assert sizes == [32, 16, 8, 4, 2, 1][: len(sizes)]
    assert notes[0].startswith("memory had no room for 64 images at once")
    # Kernels are chosen by batch size: the bytes are those of the size that fitted.
    assert alone("free", sizes[-1], False) == (shard, ())
    print("; ".join(notes))
