"""An image starts from a random latent that the teacher finds near its prompt."""

import dataclasses

import pytest
import torch
from torch import Tensor

from dfkd.candidates import OWN, Candidates
from dfkd.generator import VQGAN
from dfkd.imaging import Synthesis
from dfkd.teacher import Teacher, spherical_distance

CONFIG = Synthesis(image_size=64, candidates=42, quantise=False)
PROMPTS = ["A dog", "A house", "A car", "A heart", "A key", "A cup"]
SEEDS = [11, 12, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def candidates(teacher: Teacher, generator: VQGAN) -> Candidates:
    return Candidates(teacher, generator, CONFIG, seed=7)


@pytest.fixture(scope="module")
def targets(teacher: Teacher) -> Tensor:
    return teacher.encode_text(PROMPTS)


def far(teacher: Teacher, generator: VQGAN, latents: Tensor, targets: Tensor) -> Tensor:
    """Distances [B] of what latents show."""
    with torch.no_grad():
        return spherical_distance(teacher.encode_image(generator.decode(latents, False)), targets)


def test_the_start_is_the_nearest_of_a_quarter_of_them(
    candidates: Candidates, targets: Tensor, teacher: Teacher, generator: VQGAN
) -> None:
    """By brute force: every candidate is decoded, and fewer than a quarter may be nearer."""
    chosen = candidates.latents(targets, SEEDS)
    every = generator.fresh(candidates.seeds, 64, "codes")
    near = far(teacher, generator, chosen, targets)
    for row, target in enumerate(targets):
        same = (every == chosen[row]).flatten(1).all(dim=1)
        assert int(same.sum()) == 1
        own = candidates._own(SEEDS[row])
        assert len(own) == len(set(own.tolist())) == -(-CONFIG.candidates // OWN)
        distances = far(teacher, generator, every, target.expand(len(every), -1))
        assert float(near[row]) == pytest.approx(float(distances[own].min()), abs=1e-5)
    others = generator.fresh(SEEDS, 64, "codes")
    assert float(near.mean()) < float(far(teacher, generator, others, targets).mean())


def test_a_start_depends_on_its_own_prompt_and_seed_alone(
    candidates: Candidates, targets: Tensor, teacher: Teacher, generator: VQGAN
) -> None:
    together = candidates.latents(targets, SEEDS)
    again = Candidates(teacher, generator, CONFIG, seed=7)
    assert torch.equal(again.embeddings, candidates.embeddings)
    assert torch.equal(again.latents(targets[2:3], SEEDS[2:3]), together[2:3])
    other = Candidates(teacher, generator, CONFIG, seed=8)
    assert not torch.equal(other.latents(targets[:1], SEEDS[:1]), together[:1])


def test_images_of_one_prompt_start_apart(candidates: Candidates, targets: Tensor) -> None:
    seeds = list(range(40))
    latents = candidates.latents(targets[:1].expand(40, -1), seeds)
    assert len({tuple(latent.flatten()[:9].tolist()) for latent in latents}) > OWN


@pytest.mark.parametrize("count", [1, 3, 9])
def test_any_number_of_candidates_will_do(
    count: int, targets: Tensor, teacher: Teacher, generator: VQGAN
) -> None:
    config = dataclasses.replace(CONFIG, candidates=count)
    few = Candidates(teacher, generator, config, seed=7)
    assert few.embeddings.shape == (count, targets.shape[1])
    assert torch.allclose(few.embeddings.norm(dim=1), torch.ones(count), atol=1e-5)
    assert few.latents(targets, SEEDS).shape == generator.fresh(SEEDS, 64, "codes").shape
