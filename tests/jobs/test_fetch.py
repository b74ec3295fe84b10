"""`dfkd fetch`: official formats with random weights, from a server and copied."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.pipelines import PIPELINES
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import Exit, WeightsError
from dfkd.models.generators.settings import Vqgan
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import file_hashes
from dfkd.models.weights.artifacts import PUBLISHED_VQGANS
from dfkd.operations.preflight import check_synthesis
from tests.helpers import jobs, small_manifest
from tests.helpers.http_server import Publisher, give_tag, keep_hub_model
from tests.helpers.hub_families import PUBLISHED as FAMILIES
from tests.helpers.hub_families import write_family
from tests.helpers.small_manifest import SMALLEST
from tests.helpers.tiny_models import (
    F16,
    VIT,
    model_config,
    official_yaml,
    write_published,
    write_teacher,
)
from tests.helpers.tiny_pipeline import tiny_teacher, write_pipeline

NAME = "vqgan-imagenet-f16-16384"
GENERATOR = SMALLEST["generator"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VQGAN in the official files, under the names of the cache."""
    folder = tmp_path_factory.mktemp("official")
    write_published(folder, official_yaml(codes=16384, **F16))
    return folder


@pytest.fixture
def publisher(official: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A server with these files, whose addresses and hashes are in the catalogue."""
    with Publisher() as server:
        server.publish(official)
        files = {
            field: server.artifact(artifact.file)
            for field, artifact in PUBLISHED_VQGANS[NAME].items()
        }
        monkeypatch.setitem(PUBLISHED_VQGANS, NAME, files)
        yield server


def write_manifest(folder: Path, **sections: Any) -> Path:
    own = {
        "storage": {"root": str(folder / "run")},
        "cache": str(folder / "cache"),
        "generator": {"kind": "vqgan", "vqgan": {"config": NAME, "weights": NAME}},
        "distillation": {"weights": "none", "warmup_epochs": 0},
    }
    return small_manifest.write(folder, **own | sections)


def fetch(path: Path, *words: str, code: Exit = Exit.DONE) -> str:
    """What the job prints in this process or, if it is to fail, its error."""
    found = jobs.run_here("fetch", path, *words)
    assert found.returncode == code, found.stderr
    return found.stderr if code else found.stdout


TURBO = "sd-turbo"
UNET = f"{TURBO}/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a tiny SD-Turbo, and a manifest that names the published one."""
    write_pipeline(tmp_path / "hub" / TURBO, tiny_teacher(tmp_path))
    teacher = {
        "model": str(tmp_path / "model.json"),
        "weights": str(tmp_path / "model.safetensors"),
    }
    generator = {"kind": "diffusers", "diffusers": {"weights": TURBO, "steps": 2}}
    path = write_manifest(tmp_path, teacher=teacher, generator=generator)
    return tmp_path / "hub", path


def test_a_diffusion_model_arrives_over_a_bad_line(
    pipeline: tuple[Path, Path], tmp_path: Path
) -> None:
    """The whole job as a user starts it, with another hub."""
    published, path = pipeline
    with Publisher() as server:
        server.publish(published / TURBO)
        server.inject("busy", *["cut 100"] * 4)
        endpoint = {"HF_ENDPOINT": server.address}
        done = jobs.run("fetch", path, env=jobs.environment() | endpoint)
        assert done.returncode == Exit.DONE, done.stderr
        asked = [path for path, _ in server.seen if "/resolve/" in path]
        assert all(re.match(r"/stabilityai/sd-turbo/resolve/[0-9a-f]{40}/", p) for p in asked)
        server.seen.clear()
        assert jobs.run("fetch", path, env=jobs.environment() | endpoint).returncode == Exit.DONE
        assert not [path for path, _ in server.seen if "/resolve/" in path]
    line, last = done.stdout.splitlines()
    assert line.startswith("generator.diffusers.weights: stabilityai/sd-turbo at ")
    assert "Stability AI Community License" in line
    assert last == f"wrote {tmp_path / 'cache'}"
    assert "text_encoder/model.safetensors of stabilityai/sd-turbo" in done.stderr
    for file in (each for each in (published / TURBO).rglob("*") if each.is_file()):
        copied = tmp_path / "cache" / file.relative_to(published)
        assert copied.read_bytes() == file.read_bytes()
    check_synthesis(Manifest.read(path))


def test_a_fault_of_this_machine_is_not_told_as_the_hub_s(
    pipeline: tuple[Path, Path], tmp_path: Path
) -> None:
    _, path = pipeline
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / TURBO).touch()
    found = jobs.run_here("fetch", path)
    assert "Not a directory" in found.stderr
    assert "the hub" not in found.stderr


def test_the_files_of_a_diffusion_model_can_be_copied(
    pipeline: tuple[Path, Path], tmp_path: Path
) -> None:
    published, path = pipeline
    shutil.copytree(published / TURBO, tmp_path / "cache" / TURBO)
    offline = jobs.environment() | {"HF_HUB_OFFLINE": "1"}
    assert jobs.run("fetch", path, env=offline).returncode == Exit.DONE
    check_synthesis(Manifest.read(path))
    (tmp_path / "cache" / UNET).unlink()
    plan = jobs.plan("fetch", path)
    assert (plan["missing"], plan["missing_of_unknown_size"]) == ([UNET], 1)
    assert "Community License" in plan["from_hubs"]["stabilityai/sd-turbo"]["licence"]
    with pytest.raises(WeightsError, match=r"pytorch_model\.safetensors, which is not in"):
        check_synthesis(Manifest.read(path))
    failed = jobs.run("fetch", path, env=offline)
    assert failed.returncode == Exit.USAGE
    assert "does not give unet/diffusion_pytorch_model.safetensors" in failed.stderr


def test_a_file_of_a_diffusion_model_has_its_published_hash(
    pipeline: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, path = pipeline
    shutil.copytree(published / TURBO, tmp_path / "cache" / TURBO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = UNET.removeprefix(f"{TURBO}/")
    known = {file: sha256_file(published / UNET)}
    monkeypatch.setitem(PIPELINES, TURBO, replace(PIPELINES[TURBO], sha256=known))
    fetch(path)
    (tmp_path / "cache" / UNET).write_bytes(b"damaged")
    assert f"is not {known[file]} that was published" in fetch(path, code=Exit.FAILED)


def test_what_was_fetched_is_verified_again(publisher: Publisher, tmp_path: Path) -> None:
    path, cache = write_manifest(tmp_path), tmp_path / "cache"
    lines = (fetch(path) + fetch(path)).splitlines()
    assert [" fetched, " in line for line in lines if ".ckpt" in line] == [True, False]
    assert len(publisher.seen) == 2
    assert all("sha256 " in line and " as stated by its" in line for line in lines[:2])
    assert lines[-1] == f"wrote {cache}"
    config = Vqgan(config=NAME, weights=NAME)
    generator = VQGAN.load(config, torch.device("cpu"), cache=str(cache))
    assert (generator.downsampling, len(generator.codebook)) == (16, 16384)
    (cache / f"{NAME}.ckpt").write_bytes(b"damaged")
    assert "delete it and run again" in fetch(path, code=Exit.FAILED)


def test_a_manifest_that_names_no_published_file_needs_none(tmp_path: Path) -> None:
    job = jobs.run_here(
        "fetch", jobs.ROOT / "manifests/miniature.yaml", "--set", f"cache={tmp_path / 'cache'}"
    )
    assert (job.returncode, job.stdout.startswith("nothing to fetch")) == (0, True)
    assert "wrote" not in job.stdout
    assert not (tmp_path / "cache").exists()


def test_a_plan_has_the_facts_of_each_file_and_fetches_nothing(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path,
        teacher={"model": "ViT-B-32-quickgelu", "weights": "laion400m_e32"},
        distillation={"weights": "IMAGENET1K_V1"},
    )
    plan = jobs.plan("fetch", path)
    files = plan["files"]
    config, _, student = files.values()
    assert config["key"] == "generator.vqgan.config"
    assert (config["bytes"], len(config["sha256"])) == (692, 64)
    assert config["stated_by"].startswith("others")
    assert list(files)[-1] == "resnet18-f37072fd.pth"
    assert student["sha256"] == "f37072fd"
    assert student["licence"].startswith("BSD-3-Clause")
    assert student["address"]
    hub = "timm/vit_base_patch32_clip_224.laion400m_e32"
    assert plan["from_hubs"] == {hub: {"key": "teacher.weights", "licence": "see its model card"}}
    assert not (tmp_path / "cache").exists()


def test_a_plan_knows_what_is_there(official: Path, tmp_path: Path) -> None:
    path = write_manifest(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{NAME}.yaml").write_bytes((official / f"{NAME}.yaml").read_bytes())
    found = jobs.plan("fetch", path)
    assert found["missing"] == [f"{NAME}.ckpt"]
    assert (found["missing_bytes"], found["missing_of_unknown_size"]) == (980_092_370, 0)
    assert jobs.plan("fetch", write_manifest(tmp_path, generator=GENERATOR))["files"] == {}


def test_a_hubs_model_is_left_to_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    give_tag(monkeypatch, hf_hub="someone/tiny/")
    written = write_teacher(tmp_path / "files", model_config(VIT))
    teacher = {"model": written.model, "weights": "tiny"}
    path = write_manifest(tmp_path, teacher=teacher, generator=GENERATOR)
    assert jobs.plan("fetch", path)["from_hubs"].keys() == {"someone/tiny"}
    assert "the hub does not give someone/tiny" in fetch(path, code=Exit.USAGE)
    keep_hub_model(tmp_path / "cache", "someone/tiny", Path(written.weights))
    assert "teacher.weights: someone/tiny: " in fetch(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A hub with the teacher that the tag in `manifest.yaml` stands for."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between attempts
    give_tag(monkeypatch, hf_hub="someone/tiny/")
    written = write_teacher(tmp_path / "files", model_config(VIT))
    teacher = {"model": written.model, "weights": "tiny"}
    write_manifest(tmp_path, teacher=teacher, generator=GENERATOR)
    body = Path(written.weights).read_bytes()
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    with Publisher(**dict.fromkeys(names, body)) as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.mark.parametrize(
    ("fault", "code"),
    [("", Exit.RETRY), ("busy", Exit.RETRY), ("cut 1000", Exit.RETRY), ("gone", Exit.USAGE)],
)
def test_only_an_outage_of_the_hub_is_worth_a_repetition(
    fault: str, code: Exit, hub: Publisher, tmp_path: Path
) -> None:
    """No server, one that is overloaded, a bad line, and a server that has no such model."""
    hub.inject(*[fault] * 20)
    if not fault:
        hub.server_close()
    assert "someone/tiny" in fetch(tmp_path / "manifest.yaml", code=code)


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_not_told_as_the_hub_s_fault(
    hub: Publisher, tmp_path: Path, small_disk: Path
) -> None:
    words = "--set", f"cache={small_disk / 'cache'}"
    told = fetch(tmp_path / "manifest.yaml", *words, code=Exit.RETRY)
    assert f"no room for {small_disk / 'cache'}" in told
    assert "the hub" not in told


def test_a_pickle_is_taken_only_where_there_are_no_safetensors(
    hub: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose safetensors did not arrive would have another file than the others."""
    attempts = 7  # after which the hub's client gives up
    hub.inject(*["busy"] * attempts)
    fetch(tmp_path / "manifest.yaml", code=Exit.RETRY)
    assert {path.rpartition("/")[2] for path, _ in hub.seen} == {"open_clip_model.safetensors"}
    assert not [*(tmp_path / "cache").rglob("*.bin")]
    hub.files.pop("open_clip_model.safetensors")
    assert fetch(tmp_path / "manifest.yaml").splitlines()[0].endswith("open_clip_pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(tmp_path / "manifest.yaml").splitlines()[0].endswith("open_clip_pytorch_model.bin")


def test_a_hubs_model_arrives_over_a_bad_line(hub: Publisher, tmp_path: Path) -> None:
    hub.inject("", "cut 1000")
    assert "teacher.weights: someone/tiny: " in fetch(tmp_path / "manifest.yaml")
    assert len(hub.seen) == 3
    check_synthesis(Manifest.read(tmp_path / "manifest.yaml"))


def test_a_tokenizer_of_the_hub_is_fetched_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model looks for it without a network."""
    model, _ = FAMILIES["clipa"]
    written = write_family(tmp_path / "files", "clipa")
    tower = {"model": model, "weights": written.weights}
    path = write_manifest(tmp_path, candidates={"towers": [tower]}, generator=GENERATOR)
    file = tmp_path / "files" / "tokenizer.json"
    body = file.read_bytes()
    file.unlink()
    with Publisher(**{"tokenizer.json": body}) as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        told = fetch(path)
        assert {request for request, _ in hub.seen} == {
            "/bert-base-uncased/resolve/main/tokenizer.json"
        }
    assert told.startswith("candidates.towers.0.model: bert-base-uncased/tokenizer.json: ")
    config = TeacherConfig(**tower)
    hashes = file_hashes(config, str(tmp_path / "cache"))
    assert hashes["teacher.tokenizer"] == hashlib.sha256(body).hexdigest()
    file.write_bytes(body)  # beside its weights
    assert fetch(path).startswith("nothing to fetch")
