"""The promise of the defaults: a few images do a student no harm."""

from pathlib import Path

import torch
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.distillation.labels import target_embeddings
from dfkd.distillation.student_store import locate_student
from dfkd.evaluation import few_shot
from dfkd.evaluation.few_shot_results import gains
from dfkd.models.student import Student, build, card, rescale_output, save_student
from dfkd.models.teacher import Teacher, distances
from tests.helpers.tiny_version import publish, write_manifest

CLASSES = ("clock", "book", "camera", "house", "cat", "heart")
SEEN, UNSEEN = ("black_on_white", "light_on_dark", "color_emoji", "chalk"), "pixel_art"


def manifest(folder: Path) -> Manifest:
    path = write_manifest(
        folder,
        fewshot={"domains": UNSEEN, "shots": 1, "starts": "student"},
    )
    return Manifest.read(path, (f"classes=[{', '.join(CLASSES)}]",))


def distilled(manifest: Manifest, teacher: Teacher) -> Student:
    """A small student of the teacher's distances for real images of the domains `SEEN`."""
    data, _ = few_shot.select_domains(manifest)
    parts = [few_shot.read_domain(manifest, data, name, 1).images.pixels for name in SEEN]
    pixels = torch.cat(parts).float() / 255
    with torch.no_grad():
        labels = distances(teacher.encode_image(pixels), target_embeddings(manifest, teacher))
    scaled = (labels - labels.mean()) / labels.std()
    student = build(manifest.distillation, len(CLASSES), 32, seed=0).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.005, fused=True)
    order = torch.Generator().manual_seed(0)
    for _ in range(150):
        chosen = torch.randint(len(pixels), (48,), generator=order)
        optimizer.zero_grad()
        F.l1_loss(student(pixels[chosen]), scaled[chosen]).backward()
        optimizer.step()
    return rescale_output(student.eval(), float(labels.mean()), float(labels.std()))


def test_fine_tuning_on_one_image_a_class_costs_no_more_than_a_few_points(
    tmp_path: Path, teacher: Teacher
) -> None:
    run = manifest(tmp_path)
    publish(run)
    folder = locate_student(run, "vanilla", 0).storage
    save_student(folder, distilled(run, teacher), card(run.distillation, CLASSES, 32))
    found = few_shot.few_shot(run, threads=1)
    untouched = found.summary[0]
    assert (untouched.curve, untouched.shots) == ("untouched", 0)
    assert untouched.mean > 0.5
    assert gains(found.rows)[1]["mean"] > -0.05
