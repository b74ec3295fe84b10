"""The stages as functions: what `import dfkd` offers, and what the jobs call.

Each stage works by itself on what the one before has left in `storage.root`, resumes what a killed
one began, and finds what is finished. A Ray that the caller has started is used and left running;
else the cluster that RAY_ADDRESS names is joined, or a local one serves for the length of the call.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd.cluster import distillation
from dfkd.cluster.connection import cluster_address, connected
from dfkd.cluster.distillation import Finished
from dfkd.cluster.metrics import report_accuracy
from dfkd.cluster.synthesis import Built, build, finished, identify
from dfkd.config.budget import Budget
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.published import PublishedVersion, read_json
from dfkd.evaluation import few_shot as fewshot
from dfkd.evaluation import few_shot_results, footprint, scoring
from dfkd.evaluation.scoring import Evaluated
from dfkd.export import take_home as takehome
from dfkd.models.student import Student
from dfkd.models.student import load_student as load
from dfkd.pipeline.preflight import check_synthesis
from dfkd.report import few_shot as few_shot_report
from dfkd.report import page
from dfkd.report.contact_sheet import write_contact_sheet
from dfkd.report.facts import require_finished
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device, thread_limit
from dfkd.utils.images import decode_image
from dfkd.utils.pixels import from_bytes
from dfkd.utils.yaml import dump

__all__ = [
    "Budget",
    "Built",
    "Curves",
    "Evaluated",
    "Finished",
    "NamedStudent",
    "Picture",
    "distill",
    "evaluate",
    "few_shot",
    "load_student",
    "read_manifest",
    "synthesize",
    "take_home",
    "write_report",
]

Picture = str | Path | bytes | Image.Image
"""A picture file's path, its encoded bytes, or an open PIL image."""


def read_manifest(path: str | Path, **values: Any) -> Manifest:
    """The manifest in a YAML file, with other values for some of its keys.

    Args:
        path: of the file, e.g. `manifests/miniature.yaml`.
        **values: by key; a section is a mapping of the keys to change, e.g.
            `classes=["rocket", "tree"], synthesis={"steps": 50}`. Plain values and paths.

    Returns:
        The run that all stages take.

    Raises:
        ManifestError: the file or a value breaks a rule, which the text names.
    """
    return Manifest.read(path, tuple(_overrides("", values)))


def _overrides(parent: str, values: Mapping[str, Any]) -> Iterator[str]:
    """`key.sub=value` of every leaf, in YAML."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _overrides(f"{parent}{key}.", value)
        else:
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            yield f"{parent}{key}={dump(plain, inline=True)}"


def synthesize(
    manifest: Manifest,
    *,
    abandon: bool = False,
    accept_partial: bool = False,
    budget: Budget | None = None,
    on_version: Callable[[Built], object] = lambda built: None,
) -> list[Built]:
    """Make prompts and images, and publish one version of the data set for each method.

    Args:
        manifest: of the run.
        abandon: leave unfinished work of another manifest behind instead of refusing.
        accept_partial: publish although tasks are quarantined.
        budget: what the call may spend on each version that it makes.
        on_version: called with each version as soon as it is published.

    Returns:
        A version for each of `Manifest.methods`, in that order, with its counts.

    Raises:
        ManifestError: weights, names or sizes that do not fit; nothing has been started.
        FingerprintError: another manifest's work is unfinished here.
        PartialError: tasks are quarantined; the same call tries them again.
        BudgetError: the budget is spent; the same call resumes.
        InfrastructureError: storage or cluster failed; the same call resumes.
    """
    check_synthesis(manifest)
    versions = []
    with contextlib.ExitStack() as ray_runtime:
        for method in manifest.methods:
            chosen = manifest.with_method(method)
            identity = identify(chosen)
            if not finished(chosen, identity):  # else no cluster is worth its start
                ray_runtime.enter_context(connected())
            versions.append(build(chosen, identity, abandon, accept_partial, budget))
            on_version(versions[-1])
    return versions


def distill(
    manifest: Manifest, *, on_student: Callable[[Finished], object] = lambda finished: None
) -> list[Finished]:
    """Train a student for each method and seed on the current version, or find it finished.

    Args:
        manifest: of the run.
        on_student: called with each student as soon as it is in storage.

    Returns:
        A student for each of `Manifest.methods` and, within it, `distillation.seeds`; `place` says
        where it lies.

    Raises:
        ManifestError: nothing is published, or settings that do not fit; nothing has been started.
        CorruptionError: a shard is not what its receipt says.
        InfrastructureError: workers died too often; the same call resumes.
    """
    students = []
    # One worker on this machine needs no Ray runtime, and so does not wait for one to start.
    alone = manifest.distillation.ranks == (1, 1) and not cluster_address()
    with contextlib.nullcontext() if alone else connected():
        for method in manifest.methods:
            for seed in manifest.distillation.seeds:
                students.append(distillation.distill(manifest, method, seed))
                on_student(students[-1])
    return students


def evaluate(manifest: Manifest, *, threads: int = 0) -> Evaluated:
    """Score the teacher zero-shot, a text-only classifier and every student, per domain and class.

    Writes `results.json`, `results.parquet`, `latency.json` and, where there are students,
    `contact-sheet.png` under the run's root. Images that cannot be read are left out and named in
    `results["data"]["unreadable"]`.

    Args:
        manifest: of the run; all its students are to be finished.
        threads: CPU threads of the models and of decoding; 0 is all that this process may use.

    Returns:
        The results, as `dfkd.evaluation.results` describes them, and where they lie.

    Raises:
        ManifestError: unusable data, or a student that is missing; nothing has been scored.
        CorruptionError: a student is not what was written.
        DfkdError: no image at all can be read.
        InfrastructureError: RAY_ADDRESS names a cluster that does not answer.
    """
    # The models work in this process; a cluster is joined for its Prometheus to be told.
    joined = connected() if cluster_address() else contextlib.nullcontext()
    with joined, thread_limit(threads) as chosen:
        evaluated = scoring.evaluate(manifest, chosen)
        report_accuracy(manifest.name, evaluated.results)
        root = open_storage(manifest.storage.root)
        ms = footprint.write(root, footprint.networks(manifest))
    evaluated = dataclasses.replace(evaluated, ms=ms)
    if not evaluated.versions:
        return evaluated
    sheet = contact_sheet(manifest, evaluated.versions)
    return dataclasses.replace(evaluated, sheet=sheet)


def contact_sheet(manifest: Manifest, versions: Mapping[Method, PublishedVersion]) -> str:
    """Write `contact-sheet.png` of some versions; returns its place."""
    storage = open_storage(manifest.storage.root)
    return write_contact_sheet(storage, manifest.name, versions)


@dataclass(frozen=True)
class Curves:
    """What few labelled images make of each start, written."""

    results: few_shot_results.FewShotResults
    location: str
    """Of `fewshot/results.json`."""
    chart: str
    """Of `fewshot/curves.svg`; `curves.png` and `table.md` lie beside it."""


def few_shot(manifest: Manifest, *, threads: int = 0) -> Curves:
    """Fine-tune the student, library weights and random ones on few labelled images (Fig. 5).

    Writes `results.json`, `table.md`, `curves.svg` and `curves.png` into `fewshot/` under the run's
    root. Trainings that an earlier call has finished are found and not done again.

    Args:
        manifest: of the run; its students are to be finished if they are among the starts.
        threads: as for `evaluate`.

    Returns:
        The results, as `dfkd.evaluation.few_shot_results` describes them, and where they lie.
        Images that cannot be read are left out and named in `results.data.unreadable`.

    Raises:
        ManifestError: unusable data, or a start that is missing or does not fit; nothing has been
            trained.
        CorruptionError: a student or a finished training is not what was written.
    """
    with thread_limit(threads) as chosen:
        fewshot.few_shot(manifest, chosen)
    root = open_storage(manifest.storage.root)
    results = few_shot_results.read(root)
    storage = root.child(few_shot_results.FOLDER)
    storage.put("table.md", few_shot_report.markdown(results).encode())
    storage.put("curves.svg", few_shot_report.svg(results).encode())
    storage.put("curves.png", few_shot_report.png(results))
    return Curves(results, root.location(few_shot_results.KEY), storage.location("curves.svg"))


def take_home(manifest: Manifest, *, threads: int = 0) -> str:
    """Write the folder `student/`: ONNX in float32 and int8, labels, model card.

    What is in it is told by `dfkd.export.take_home`.

    Args:
        manifest: of an evaluated run; its last method and first seed name the student.
        threads: as for `evaluate`.

    Returns:
        The place of the folder.

    Raises:
        ManifestError: the run is not evaluated, or that student was not scored.
        CorruptionError: something that the run left is not what was written.
    """
    storage = open_storage(manifest.storage.root)
    require_finished(storage)
    with thread_limit(threads) as chosen:
        return takehome.write_take_home(manifest, read_json(storage, "results.json"), chosen)


def write_report(manifest: Manifest, command: str = "") -> str:
    """Write `report.html`, the page about a run, from what lies in its storage.

    Args:
        manifest: of an evaluated run.
        command: that makes the run again, for the page.

    Returns:
        The place of the page.

    Raises:
        ManifestError: the run is not evaluated.
        CorruptionError: something that the run left is not what was written.
    """
    return page.write(manifest, command)


@dataclass(frozen=True)
class NamedStudent:
    """A finished student that takes pictures and answers with class names."""

    student: Student
    """The network: pixels [N, 3, H, W] float32 in [0, 1] to distances [N, M]."""
    classes: tuple[str, ...]
    """M names, in the order of the distances."""
    image_size: int
    """Pixels a side that the network takes; pictures of any size are fitted to it."""

    def distances(self, pictures: Sequence[Picture]) -> Tensor:
        """How far each of N pictures is from each class.

        Returns:
            float32 [N, M] on the CPU, the teacher's squared spherical distances as the student has
            learned them; smaller is closer.

        Raises:
            ValueError: no picture is given, or one of them cannot be decoded.
            OSError: a file cannot be read.
        """
        fitted = np.stack(
            [decode_image(_encoded(picture), self.image_size) for picture in pictures]
        )
        batch = torch.from_numpy(fitted).to(self.student.mean.device)
        with torch.inference_mode():
            distances: Tensor = self.student(from_bytes(batch).contiguous())
        return distances.cpu()

    def predict(self, pictures: Sequence[Picture]) -> list[str]:
        """The name of the nearest class for each picture; raises as `distances` does."""
        return [self.classes[index] for index in self.distances(pictures).argmin(dim=1).tolist()]


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()


def load_student(source: Finished | str | Path, device: torch.device | None = None) -> NamedStudent:
    """A student that `distill` gave, or the one in a folder `{storage.root}/students/...`.

    Args:
        source: of the student.
        device: that it works on; None is the GPU if there is one.

    Raises:
        CorruptionError: an object is missing, or is not what was written.
    """
    place = source.student.storage if isinstance(source, Finished) else source
    student, card = load(place, device or pick_device())
    return NamedStudent(student, tuple(card["classes"]), card["image_size"])
