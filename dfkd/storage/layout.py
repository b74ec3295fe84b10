"""The layout of a run's root: every folder and key that more than one module uses.

data/{method}/
    versions/{id}/                  a version of the method's data set:
        identity.json               everything that the fingerprint hashes; written first
        prompts/{part}.parquet      written before the shards of the part
        prompts.json                summary and sha256 of the prompts; written after all of them
        state/                      states of a chained method; deleted once it is published
        shards/{task}.tar
        receipts/{task}.json.gz     with it a shard counts as complete
        index/{block}-{hash}.json   the receipts of a block
        index/{block}-{hash}.parquet    a row for each image of a block
        README.md                   data card
        version.json                written last and once; with it the version is published
        quarantined/{task}.json     why a task failed at every attempt; deleted by the next call
        abandoned                   marks an unfinished version that later runs ignore
        removing                    marks a version that dfkd clean removes or is about to
    current/{n:08d}.json            names a version; the highest number is current
students/{name}/                    a student: checkpoints/, tensorboard/, then weights and card
cells/{name}/                       the results of a study's cell
cells/root/mark                     marks a root of studies, before it has a cell
regenerations/{n:08d}/              one attempt at a better version
candidates/{name}/                  an exported candidate; candidates.json has all of them
shipped/                            a copy of the candidate that dfkd ship chose
held-out/                           a root of its own with images that nothing learns from
labels/{version}-{hash}.safetensors moments of the labels of others than the version's teacher
audit/                              a root of its own with the few images of dfkd audit
other-classes/                      scores and labels of classes that replace the run's
leases/, records/, tensorboard/, benchmarks/
"""

import re

DATA = "data/"
VERSIONS = "versions/"
CURRENT = "current/"
STUDENTS = "students/"
CELLS = "cells/"
STUDIES = f"{CELLS}root/mark"
REGENERATIONS = "regenerations/"
LEASES = "leases/"
RECORDS = "records/"
TENSORBOARD = "tensorboard/"
BENCHMARKS = "benchmarks/"
CHECKPOINTS = "checkpoints/"
OTHER_CLASSES = "other-classes/"
HELD_OUT = "held-out"
LABELS = "labels/"
AUDIT = "audit"
RESULTS = "results.json"
REPORT, REPORT_FACTS, COMPARISON = "report.html", "report.json", "comparison.html"
CANDIDATES = "candidates.json"
"""What each candidate reaches and costs; written after all of their folders."""
SHIPPED, SHIPPED_FACTS = "shipped/", "shipped.json"
"""The folder of the shipped candidate, and the object in it that is written last."""
CONTACT_SHEET = "contact-sheet.png"
CANDIDATE_FOLDERS = "candidates/"

IDENTITY = "identity.json"
PROMPTS = "prompts/"
PROMPTS_SUMMARY = "prompts.json"
STATES = "state/"
SHARDS = "shards/"
RECEIPTS = "receipts/"
QUARANTINED = "quarantined/"
INDEX = "index/"
CARD = "README.md"
PUBLISHED = "version.json"
ABANDONED = "abandoned"
REMOVING = "removing"
"""Also the mark of a student's removal."""

STUDENT_WEIGHTS, STUDENT_CARD = "student.safetensors", "student.json"
"""The two objects of a finished student. The card is written last, so it marks completion."""

TASK = "[0-9]{4,9}-[0-9]{5,9}"
"""Regular expression for the id of a task."""
PART = "[0-9]{5,9}"
"""Regular expression for the name of a part of the prompts, or of a block."""
RECEIPT = re.compile(rf"{RECEIPTS}([0-9]{{4,9}})-([0-9]{{5,9}})\.json\.gz")
"""Matches the key of a receipt, relative to the folder of its version; its groups are the indices
of class and shard."""
POINTER = re.compile(rf"{CURRENT}[0-9]{{8}}\.json")
"""Matches the key of a pointer to a current version, relative to the folder of its method."""


def data(method: str) -> str:
    """The folder of a method's data set, relative to the root."""
    return f"{DATA}{method}"


def version(identifier: str) -> str:
    """The folder of a version, relative to the folder of its method."""
    return f"{VERSIONS}{identifier}"


def pointer(number: int) -> str:
    """The key of the pointer to a current version, relative to the folder of its method."""
    return f"{CURRENT}{number:08d}.json"


def receipt(task: str) -> str:
    """The key of a task's receipt, relative to the folder of its version."""
    return f"{RECEIPTS}{task}.json.gz"


def block(name: str, sha256: str, suffix: str) -> str:
    """The key of a file of a block's, relative to the folder of its version.

    The name holds a part of its hash, so that no publisher overwrites what another one has written.
    """
    return f"{INDEX}{name}-{sha256[:16]}.{suffix}"


def quarantined(task: str) -> str:
    """The key of the reason for a task's quarantine, relative to the folder of its version."""
    return f"{QUARANTINED}{task}.json"


def shard(task: str) -> str:
    """The key of a task's shard, relative to the folder of the version that made it."""
    return f"{SHARDS}{task}.tar"


def prompts(part: str) -> str:
    """The key of a part of the prompts, relative to the folder of its version."""
    return f"{PROMPTS}{part}.parquet"


def student(name: str) -> str:
    """The folder of a student, relative to the root."""
    return f"{STUDENTS}{name}"


def regeneration(number: int) -> str:
    """The folder of an attempt at a better version, relative to the root."""
    return f"{REGENERATIONS}{number:08d}"


def lease(name: str, number: int) -> str:
    """The key of a numbered lease, relative to the root."""
    return f"{LEASES}{name}/{number:08d}.json"
