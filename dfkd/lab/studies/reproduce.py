"""Make a study: a loop over `dfkd.api`, in which one row after the other goes through the stages.

The names of data sets, students and scores cover everything that can change them. So cells share
what they have in common, also across studies; a killed study resumes; and a cell with scores is
skipped. The cells of a row that share a data set are made together: `dfkd.distill` trains their
students side by side.
"""

import contextlib
import datetime
from typing import Any

import torch
from torch import nn

from dfkd import api
from dfkd.cluster.connection import connected
from dfkd.cluster.making import identify, is_published
from dfkd.config.hashing import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.student_names import student_name
from dfkd.errors import DfkdError, InfrastructureError, ManifestError, PartialError, printable_line
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.scoring import evaluate
from dfkd.lab import footprint
from dfkd.lab.few_shot.run import require_trainable, unknown_domain
from dfkd.lab.studies import output
from dfkd.lab.studies.judge import read_judge
from dfkd.lab.studies.results import (
    CellResult,
    CellScore,
    CellStore,
    Score,
    StudyCells,
    StudyResults,
    cell_of_teacher,
    collect_results,
    evaluation_digest,
    scored_images,
    unseen_digest,
)
from dfkd.lab.studies.study import Cell, Study
from dfkd.lab.studies.tsne import maps, require_tsne
from dfkd.operations.preflight import check_batches, check_distillation, check_synthesis
from dfkd.report.facts import commit
from dfkd.storage import layout
from dfkd.storage.base import BUCKET_ROOTS, Storage, split_root
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import describe_machine, environment
from dfkd.utils.pixels import from_batch

REASONS = 3
"""Number of failed cells whose reasons the error repeats; the table's notes list all of them."""


def make(study: Study, place: Storage, command: str, threads: int = 0) -> str:
    """Make what is missing, tell of each cell, and write table and figure to `place`.

    Args:
        command: the one that repeats the study, for results.json.
        threads: as for `run`.

    Returns:
        The location of the main file.

    Raises:
        PartialError: some cells failed; the others are stored and shown in the table.
    """
    data = open_evaluation(study)
    cells = run(study, data, threads)
    rows = networks(study, cells)
    results = collect_results(
        study,
        cells,
        scored_images(study, data) if data else {},
        command,
        commit(),
        maps(study, data, cells, threads) if data else (),
        {label: network.parameters for label, network in rows.items()},
    )
    # Without any row there is nothing to draw; otherwise what there is is written first.
    if results.failed and not results.rows:
        raise _failed(study, results)
    ms = footprint.cached_or_measured(place, rows) if rows else {}
    main_file = output.write(place, study, results, cells.versions, data, ms)
    if study.trains:
        print(output.markdown(output.grid(study.described, results, ms)), flush=True)
    if results.failed:
        print(f"wrote {main_file}", flush=True)
        raise _failed(study, results)
    return main_file


def _failed(study: Study, results: StudyResults) -> PartialError:
    """The error that names the first failed cells."""
    shown = "; ".join(f"{label}: {why}" for label, why in list(results.failed.items())[:REASONS])
    return PartialError(
        f"study {study.described.name}: {len(results.failed)} of {len(study.cells)} cells failed "
        f"({shown}); run the same command again, it resumes"
    )


def open_output(study: Study, given: str | None) -> Storage:
    """Where the files go: `--output`, or the study's folder; with `--quick` one under the root."""
    if given is None and study.described.size == "quick":
        root = open_storage(study.manifest.storage.root)
        return root.child(f"studies/{study.described.name}")
    target = given or str(study.folder)
    split_root("--output", target)
    try:
        return open_storage(target)
    except ManifestError as error:
        rule = f"must be a folder, {BUCKET_ROOTS} ({error})"
        raise ManifestError("--output", rule, target, "give another") from None


def open_evaluation(study: Study) -> Domains | None:
    """The evaluation data of all students; None for a gallery.

    Raises:
        ManifestError: unusable data, or without a domain that an embedding can train on.
    """
    if not study.trains:
        return None
    data = open_data(study.manifest.evaluation, study.manifest.classes)
    adaptation = study.described.adaptation
    if adaptation:
        if adaptation.domain not in data.names:
            raise unknown_domain("adaptation.domain", data, adaptation.domain)
        require_trainable("adaptation.domain", data, adaptation.domain)
    return data


def run(study: Study, data: Domains | None, threads: int = 0) -> StudyCells:
    """Run every unfinished cell, and print a line about each. A cell that fails is reported in the
    result, and the others go on.

    Args:
        data: the evaluation data, as `open_evaluation` returns them.
        threads: threads that decode images while scoring; 0 means one for each processor.

    Returns:
        All cells of the study, finished by this call or an earlier one.

    Raises:
        ManifestError: weights, names, sizes or students that cannot work; nothing has been started.
        InfrastructureError: storage or cluster failed; the same call resumes.
    """
    # A missing package, weights and wrong sizes are refused now, not after hours of training.
    described, manifest = study.described, study.manifest
    if described.kind == "embedding":
        require_tsne()
    size = manifest.synthesis.image_size
    # The quick study must run without the judge's file.
    judge_file = "" if described.size == "quick" else described.judge
    judge = read_judge(judge_file, manifest.classes, size, pick_device())
    # Each data set is identified once, because `identify` hashes whole weight files.
    data_sets = {each.storage.root: each for each in study.data_sets()}
    identities = {root: identify(each) for root, each in data_sets.items()}
    digest, unseen_images = (evaluation_digest(data), unseen_digest(study)) if data else ("", "")
    stores: dict[str, CellStore] = {}
    teachers: set[str] = set()
    outcomes: dict[str, CellResult] = {}
    for cell in study.cells if study.trains else ():
        home, held_out = cell.home, study.held_out(cell)
        own = identities[home.storage.root]
        version = fingerprint(own)
        stores[cell.label] = store = CellStore(
            open_storage(home.storage.root),
            student_name(home, version, home.method, cell.seed),
            version,
            digest,
            fingerprint(identities[held_out.storage.root]) if held_out else "",
            judge.sha256 if judge else "",
            # Students of distances know only their own classes.
            unseen_images if home.distillation.embeds else "",
        )
        # The table has a single row for the teacher, so all rows must share one.
        teachers.add(cell_of_teacher(store.storage, own, digest).model)
        if described.teacher and len(teachers) > 1:
            raise ManifestError(
                "teacher",
                f"must be empty where rows have several teachers, as {cell.row} has another",
                described.teacher,
                "empty it, or move the teacher to settings",
            )
    for cell in study.cells if study.trains else ():
        store = stores[cell.label]
        # A map needs the student of its row's first cell, which may have been deleted since.
        mapped = described.kind == "embedding" and cell is study.rows[cell.row][0]
        card = f"{layout.student(store.model)}/{layout.STUDENT_CARD}"
        if (not mapped or store.storage.exists(card)) and (found := store.read()):
            outcomes[cell.label] = found
    # Checked are only unfinished cells, because the checks load models.
    missing = [cell for cell in study.cells if cell.label not in outcomes]
    published = {root for root, each in data_sets.items() if is_published(each, identities[root])}
    unpublished = {cell.home.storage.root for cell in missing} - published
    for cell in missing if study.trains else ():
        check_batches(cell.manifest)
    for root in unpublished:
        check_synthesis(data_sets[root])
    for each in {_shape(cell.manifest): cell.manifest for cell in missing if study.trains}.values():
        check_distillation(each)
    named = judge.accuracy(data, size, threads) if judge and data else None

    made: dict[str, PublishedVersion | DfkdError] = {}
    failed: dict[str, str] = {}
    shown: dict[str, PublishedVersion] = {}

    def tell(label: str, what: str, outcome: CellResult | None = None) -> None:
        """Print a line about a cell; a failure at once, because the others may take hours."""
        if outcome:
            what += f", accuracy {100 * outcome.mean(manifest.evaluation.average):.1f}"
        print(printable_line(f"{label}: {what}"), flush=True)

    def data_set(manifest: Manifest) -> PublishedVersion:
        """The version of a data set; one that cannot be made is tried once."""
        root = manifest.storage.root
        if root not in made:
            try:
                made[root] = api.synthesize(manifest, abandon=True)[0].version
            except InfrastructureError:
                raise
            except DfkdError as error:
                made[root] = error
        if isinstance(found := made[root], DfkdError):
            raise found
        return found

    def finish(cells: list[Cell]) -> None:
        """Train and score the students of one row and one data set."""
        first = cells[0]
        seeds = tuple(cell.seed for cell in cells)
        version = data_set(first.home)
        held_out = study.held_out(first)
        agreeing = data_set(held_out) if held_out else None
        recognised = judge.recognised(version, size) if judge else None
        unseen = described.unseen if first.manifest.distillation.embeds else ()
        students = api.distill(first.home.with_values(distillation={"seeds": seeds}))
        for cell, student in zip(cells, students, strict=True):
            agreed = None
            if agreeing:
                device = pick_device()
                network = api.load_student(student, device).student
                # Batches of one image, because a stream leaves out those that do not fill a batch.
                agreed = agreement(network, Stream(agreeing, size, 1, seed=0), device)
            store = stores[cell.label]
            outcome = _score(cell.home, store, threads, agreed, recognised, unseen)
            outcomes[cell.label] = outcome
            tell(cell.label, f"finished {outcome.model}", outcome)

    # Tells others what this root is for.
    open_storage(manifest.storage.root).put_if_absent(layout.STUDIES, b"")
    with connected() if unpublished else contextlib.nullcontext():
        teacher = None
        if described.teacher and study.trains:
            own = identities[study.cells[0].home.storage.root]
            storage = open_storage(manifest.storage.root)
            store = cell_of_teacher(storage, own, digest, unseen_images)
            only = manifest.with_values(
                evaluation={"models": ("teacher",)}, distillation={"labeller": ("teacher",)}
            )
            outcome = store.read() or _score(only, store, threads, unseen=described.unseen)
            teacher = CellScore(0, store.folder, outcome)
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in study.cells:
            groups.setdefault((cell.row, cell.home.storage.root), []).append(cell)
        for (row, _), group in groups.items():
            unfinished = [cell for cell in group if cell.label not in outcomes]
            for cell in group:
                if cell.label in outcomes:
                    outcome = outcomes[cell.label]
                    tell(cell.label, f"found {outcome.model}", outcome)
            try:
                if described.pictures and row not in shown:
                    shown[row] = data_set(group[0].home)
                if study.trains and unfinished:
                    finish(unfinished)
            # Without storage or cluster every other cell would fail too, so the call ends here.
            except InfrastructureError:
                raise
            except (DfkdError, RuntimeError, MemoryError) as error:  # e.g. too little memory
                why = str(error) if isinstance(error, DfkdError) else repr(error)
                # Without an unfinished one it is the pictures of the row that cannot be shown.
                for cell in unfinished or group:
                    if cell.label not in outcomes or not unfinished:
                        failed[cell.label] = " ".join(why.split())
                        tell(cell.label, f"failed: {failed[cell.label]}")
    students: dict[str, tuple[CellScore, ...]] = {}
    above = f"{manifest.storage.root.rstrip('/')}/"
    for cell in study.cells:
        if cell.label in outcomes:
            below = cell.home.storage.root.removeprefix(above)
            folder = f"{below}/{stores[cell.label].folder}"
            scored = CellScore(cell.seed, folder, outcomes[cell.label])
            students[cell.row] = (*students.get(cell.row, ()), scored)
    return StudyCells(teacher, students, shown, failed, named)


def _score(
    manifest: Manifest,
    store: CellStore,
    threads: int,
    agreed: float | None = None,
    recognised: float | None = None,
    unseen: tuple[str, ...] = (),
) -> CellResult:
    """Score the one model that the manifest's evaluation names, and store the result.

    Args:
        unseen: classes that the model did not learn, to score it on as well.

    Raises:
        PartialError: an image cannot be read.
    """

    def measured(folder: str, classes: tuple[str, ...]) -> dict[str, Any]:
        results = evaluate(manifest, threads, folder=folder, classes=classes).results
        # A cell that lacks images cannot be compared with the others, so none is stored.
        if unreadable := results["data"]["unreadable"]:
            raise PartialError(
                f"evaluation.data: {len(unreadable)} images could not be read, the first is "
                f"{unreadable[0]}; fix or remove them"
            )
        return results

    results = measured(store.folder, ())
    pooled = None
    if unseen:
        # All images count alike, because a domain may have few images of some of these classes.
        rows = measured(f"{store.folder}/unseen", unseen)["rows"]
        right = sum(row["accuracy"] * row["images"] for row in rows)
        pooled = right / sum(row["images"] for row in rows)
    return store.keep(
        CellResult(
            model=store.model,
            version=store.version,
            data=store.data,
            held_out=store.held_out,
            agreement=agreed,
            judge=store.judge,
            recognised=recognised,
            unseen_data=store.unseen_data,
            unseen=pooled,
            scores=tuple(
                Score(
                    domain=row["domain"],
                    images=row["images"],
                    accuracy=row["accuracy"],
                    class_mean=row["class_mean"],
                    per_class=row["per_class"],
                )
                for row in results["rows"]
            ),
            notes=tuple(results["data"]["notes"]),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=describe_machine(),
            environment=environment(),
        )
    )


@torch.no_grad()
def agreement(student: nn.Module, images: Stream, device: torch.device) -> float:
    """Share of images, 0-1, for which student and teacher have the same nearest class.

    Args:
        student: in eval mode on `device`.
        images: with the teacher's stored distances.
    """
    same = [
        student(from_batch(batch.pixels, device)).argmin(1).cpu() == batch.distances.argmin(1)
        for batch in images.batches(0)
    ]
    return float(torch.cat(same).double().mean())


def networks(study: Study, cells: StudyCells) -> dict[str, footprint.TimedNetwork]:
    """The network of each row with a finished cell, by the row's label."""
    rows: dict[str, footprint.TimedNetwork] = {}
    if cells.teacher:
        tower = footprint.tower(study.manifest.teacher, study.manifest.cache)
        rows[study.described.teacher] = tower
    # Rows with the same shape share one network, so it is built and measured once.
    shapes: dict[tuple[object, ...], footprint.TimedNetwork] = {}
    for row in cells.students:
        manifest = study.rows[row][0].manifest
        shape = _shape(manifest)
        if shape not in shapes:
            shapes[shape] = footprint.student(manifest)
        rows[row] = shapes[shape]
    return rows


def _shape(manifest: Manifest) -> tuple[object, ...]:
    """Everything that decides whether a student can be built, and how large it is."""
    config = manifest.distillation
    # The teacher's name too, because a student of embeddings has an output for each dimension.
    target = config.target, manifest.teacher.model
    return config.architecture, config.initial_weights, *target, manifest.synthesis.image_size
