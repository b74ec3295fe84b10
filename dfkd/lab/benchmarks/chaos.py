"""A run in which workers and nodes are killed at random from its first minute to its last.

    python -m dfkd.lab.benchmarks.chaos runs/chaos.json

The cluster is six Ray nodes of one CPU on this machine and a head that works on nothing. Tasks are
stand-ins that take a while, so that a kill finds every worker at work. Storage says afterwards
whether an image is missing or there twice.
"""

import argparse
import contextlib
import datetime
import os
import random
import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import ray

from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, blocks, image_count, task_count, tasks
from dfkd.dataset.versions import Version, begin
from dfkd.lab.benchmarks.measure import Results
from dfkd.lab.benchmarks.memory import descendants, watched
from dfkd.lab.benchmarks.scale import sized
from dfkd.lab.benchmarks.stand_in import StandInMaker, put_prompts, put_shards
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import describe_machine, environment
from dfkd.utils.progress import bar
from dfkd.utils.strict_json import canonical

T = TypeVar("T")

CLASSES = 30
NODE_SHARE = 1 / 3
"""Share of the kills that take a whole node."""
SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}


class Filler(Actor):
    """Makes stand-ins, and takes its time, so that a kill finds it at work.

    It is no `Worker`, which imports torch: six of them on two cores would do little else.
    """

    def __init__(self, manifest: Manifest, version: Version, seconds: float) -> None:
        self.version, self.seconds = version, seconds
        self.maker = StandInMaker(manifest)

    def run(self, task: Task) -> str:
        """Make and commit the shard of a task; returns its id."""
        time.sleep(self.seconds)
        put_shards(self.maker, self.version, [task])
        return task.id


def _raylet(node: Any) -> int:
    """The process id of a node."""
    (found,) = node.all_processes["raylet"]
    return int(found.process.pid)


def kill_while(
    filling: Future[T], cluster: Any, nodes: list[Any], pause: float, chance: random.Random
) -> list[dict[str, Any]]:
    """Kill a worker or a node every `pause` seconds until `filling` is done, and add a node for
    each that was killed one pause later; returns the kills.

    It works in the main thread, because Ray starts a node there only.
    """
    kills: list[dict[str, Any]] = []
    begun, gone = time.monotonic(), 0
    while not wait([filling], pause or None).done:
        for _ in range(gone):
            # A machine that is too busy to start a node in Ray's 15 seconds tries again.
            with contextlib.suppress(Exception):
                nodes.append(cluster.add_node(num_cpus=1, **SMALL))
                gone -= 1
        node = chance.choice(nodes)
        family = sorted(descendants(_raylet(node)))
        if chance.random() < NODE_SHARE and len(nodes) > 1:
            nodes.remove(node)
            killed, kind, gone = [_raylet(node), *family], "node", gone + 1
        else:
            killed, kind = [], "worker"
            for pid in family:
                # Ray's own helpers are of the family too, and a process may end meanwhile.
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Filler"):
                        killed = [pid]
                        break
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind == "node":
            cluster.remove_node(node, allow_graceful=False)
        if killed:
            kills.append({"kind": kind, "second": round(time.monotonic() - begun, 1)})
    return kills


def fill(engine: Engine[Task], manifest: Manifest, version: Version) -> dict[str, str]:
    """Make what has no receipt; returns the reason for each quarantined task id."""
    done, total = version.done(), task_count(manifest)
    with bar("stand-ins", total, "task", len(done)) as progress:
        for _ in engine.run(task for task in tasks(manifest) if task.id not in done):
            progress.update(1)
    return {item.unit.id: item.reason for item in engine.quarantine}


def measure(manifest: Manifest, nodes: int, pause: float, seconds: float, seed: int) -> Results:
    """Fill and publish the version of a manifest on a cluster in chaos; what is lost or doubled.

    Args:
        nodes: those that work.
        pause: seconds from one kill to the next; 0 kills nothing.
        seconds: that a task takes at least.
        seed: of the kills.
    """
    from ray.cluster_utils import Cluster  # reads the environment that `main` sets

    home = open_storage(manifest.storage.root).child(layout.data(manifest.method))
    version = begin(home, identity(manifest, {}))
    put_prompts(manifest, version)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL}
    )
    try:
        workers = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(nodes)]
        ray.init(address=cluster.address, log_to_driver=False)
        arguments, attempts = (manifest, version, seconds), manifest.cluster.attempts
        engine: Engine[Task] = Engine(Filler, arguments, nodes, attempts, WorkerResources(1.0))
        begun = time.perf_counter()
        with watched(interval=5.0) as watch, ThreadPoolExecutor(1, "driver") as aside:
            filling = aside.submit(fill, engine, manifest, version)
            chance = random.Random(seed)  # noqa: S311
            kills = kill_while(filling, cluster, workers, pause, chance)
            quarantined = filling.result()
        spent = time.perf_counter() - begun
    finally:
        ray.shutdown()
        cluster.shutdown()
    published = version.publish(blocks(manifest), environment(), quarantined)
    images = Counter(
        (row["class_index"], row["index"])
        for block in published.blocks
        for row in published.block_index(block, ("class_index", "index")).to_pylist()
    )
    return {
        "nodes": nodes,
        "tasks": task_count(manifest),
        "attempts": sum(engine.tries(task.id) for task in tasks(manifest)),
        "lost": image_count(manifest) - len(images),
        "doubled": sum(images.values()) - len(images),
        "quarantined": quarantined,
        "seconds": round(spent, 1),
        "killed": dict(Counter(kill["kind"] for kill in kills)),
        "kills": kills,
        "memory": watch.summary(),
    }


def main(words: Sequence[str]) -> int:
    """Run it and write the record; returns 1 if an image is lost or doubled."""
    arguments = argparse.ArgumentParser(description=__doc__)
    add = arguments.add_argument
    add("record", type=Path, help="the JSON file to write")
    add("--tasks", type=int, default=3000, help="stand-in tasks of one image (3000)")
    add("--nodes", type=int, default=6, help="nodes that work (6)")
    add("--pause", type=float, default=10.0, help="seconds between two kills, 0: none (10)")
    add("--task-seconds", type=float, default=0.5, help="that each task takes at least (0.5)")
    add("--seed", type=int, default=0, help="of the kills (0)")
    options = arguments.parse_args(words)
    if "RAY_AUTH_TOKEN" not in os.environ:
        # Ray reads these when it is imported, so this program starts once more.
        own = {
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        again = [sys.executable, "-m", "dfkd.lab.benchmarks.chaos", *words]
        os.execve(sys.executable, again, os.environ | own)  # noqa: S606 - this program
    with tempfile.TemporaryDirectory(prefix="dfkd-chaos-") as folder:
        settings = (
            f"storage.root={folder}",
            f"synthesis.images_per_class={-(-options.tasks // CLASSES)}",
            "synthesis.shard_size=1",
            "synthesis.image_size=8",
            # A task that is repeated comes first, so that the next kill may hit it again.
            "cluster.attempts=10",
        )
        file = Path(__file__).parents[3] / "manifests" / "benchmarks" / "scale.yaml"
        manifest = sized(Manifest.read(file, settings), CLASSES)
        results = measure(
            manifest, options.nodes, options.pause, options.task_seconds, options.seed
        )
    record = {
        "benchmark": "chaos",
        "command": shlex.join(["python", "-m", "dfkd.lab.benchmarks.chaos", *words]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "environment": environment(),
        "results": results,
    }
    options.record.write_bytes(canonical(record))
    shown = {key: value for key, value in results.items() if key not in ("kills", "memory")}
    print(shown, results["memory"]["driver_by_tenth"], flush=True)
    return int(bool(results["lost"] or results["doubled"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
