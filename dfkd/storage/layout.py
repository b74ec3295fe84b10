"""Where things lie under a run's root: every folder and key that more than one module names.

data/{method}/versions/{id}/   one version of the data set of a method:
    identity.json, manifest.json, receipts/{task}.json, shards/{task}.tar, prompts/{part}.parquet
data/{method}/current/         pointers to the version that readers use
students/{name}/               a student: checkpoints, then weights and card
cells/{name}/                  what a cell of a study leaves
regenerations/{number}/        one attempt at a better version
leases/, records/, tensorboard/, benchmarks/
"""

DATA = "data/"
VERSIONS = "versions/"
RECEIPTS = "receipts/"
SHARDS = "shards/"
PROMPTS = "prompts/"
STUDENTS = "students/"
CELLS = "cells/"
REGENERATIONS = "regenerations/"
LEASES = "leases/"
RECORDS = "records/"
TENSORBOARD = "tensorboard/"
BENCHMARKS = "benchmarks/"


def data(method: str) -> str:
    """The folder of a method's versions, under the root."""
    return f"{DATA}{method}"


def version(identifier: str) -> str:
    """The folder of a version, under its method's."""
    return f"{VERSIONS}{identifier}"


def receipt(task: str) -> str:
    """The key of a task's receipt, under its version's folder."""
    return f"{RECEIPTS}{task}.json"


def shard(task: str) -> str:
    """The key of a task's shard, under the folder of the version that made it."""
    return f"{SHARDS}{task}.tar"


def prompts(part: str) -> str:
    """The key of a part of the prompts, under its version's folder."""
    return f"{PROMPTS}{part}.parquet"


def student(name: str) -> str:
    """The folder of a student, under the root."""
    return f"{STUDENTS}{name}"
