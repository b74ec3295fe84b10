"""The start network: each latent its own, training that can be taken up again, and its worth."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dfkd import amortised
from dfkd.amortised import Start, Trainer, fresh_start
from dfkd.errors import CorruptionError, DfkdError
from dfkd.generator import VQGAN
from dfkd.imaging import Amortised, Synthesis
from dfkd.manifest import Manifest, Storage
from dfkd.plan import image_steps, own_steps, training_steps
from dfkd.synthesis import Synthesiser
from dfkd.teacher import Teacher
from models import GENERATOR, TEACHER

NAMES = ("dog", "house", "car", "heart")


def manifest(**settings: float) -> Manifest:
    """Of four classes with two images each, in six steps."""
    synthesis = Synthesis(
        images_per_class=2,
        image_size=64,
        steps=6,
        views=0,
        quantise=False,
        amortised=Amortised(**({"training": 1.0, "refinement": 0.5, "batch_size": 8} | settings)),  # type: ignore[arg-type]
    )
    made = Manifest(
        name="m",
        classes=NAMES,
        storage=Storage(root="r"),
        teacher=TEACHER,
        generator=GENERATOR,
        synthesis=synthesis,
    )
    return made.with_method("contrastive")


@pytest.fixture
def trainer(teacher: Teacher, generator: VQGAN) -> Trainer:
    return make(teacher, generator)


def make(teacher: Teacher, generator: VQGAN, **settings: float) -> Trainer:
    chosen = manifest(**settings)
    synthesiser = Synthesiser(teacher, generator, chosen.synthesis)
    return Trainer(chosen, synthesiser, teacher.encode_text([f"A {name}" for name in NAMES]))


def test_the_cost_is_counted() -> None:
    """Eight images: six steps of eight for the network, and three of their own."""
    assert training_steps(manifest()) == 6
    assert own_steps(manifest()) == 3
    assert image_steps(manifest()) == 6 * 8 + 8 * 3
    assert image_steps(manifest(training=0.0, refinement=1.0)) == 8 * 6


@pytest.mark.parametrize("size", [64, 96, 224])
def test_latents_have_the_generators_shape_and_range(generator: VQGAN, size: int) -> None:
    start = Start(16, generator, size, width=32, seed=0)
    latents = start.latents(torch.randn(3, 16), [1, 2, 3])
    assert latents.shape == (3, *generator.latent_shape(size))
    assert torch.equal(generator.constrain(latents.clone()), latents)
    assert float(latents.std()) > 0


def test_a_latent_depends_on_its_own_prompt_and_seed(generator: VQGAN) -> None:
    start = Start(16, generator, 64, width=32, seed=0)
    targets = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    together = start.latents(targets, [1, 2, 3])
    torch.testing.assert_close(start.latents(targets[1:2], [2]), together[1:2])
    assert not torch.allclose(start.latents(targets[1:2], [7]), together[1:2])
    assert not torch.allclose(start.latents(targets[:1], [2]), together[1:2])


def test_the_manifests_seed_makes_the_network_and_leaves_the_global_state(
    generator: VQGAN,
) -> None:
    before = torch.get_rng_state()
    one, two = (fresh_start(manifest(), generator, 16, torch.device("cpu")) for _ in range(2))
    other = dataclasses.replace(manifest(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.save() == two.save()
    assert fresh_start(other, generator, 16, torch.device("cpu")).save() != one.save()


def test_all_prompts_are_shown_before_any_is_shown_again(
    teacher: Teacher, generator: VQGAN
) -> None:
    trainer = make(teacher, generator, batch_size=3)
    shown = []
    for trainer.step in range(8):
        shown += trainer._rows().tolist()
    rounds = [sorted(shown[first : first + 4]) for first in range(0, 24, 4)]
    assert rounds == [[0, 1, 2, 3]] * 6
    assert len({tuple(shown[first : first + 4]) for first in range(0, 24, 4)}) > 1


def test_training_is_taken_up_where_it_was_left(
    teacher: Teacher, generator: VQGAN, trainer: Trainer
) -> None:
    trainer.advance(2)
    late = make(teacher, generator)
    late.restore(2, trainer.state())
    for each in (trainer, late):
        each.advance(4)
    assert trainer.start.save() == late.start.save()
    with pytest.raises(CorruptionError, match="not of this start network"):
        late.restore(2, {"start.dense.0.weight": torch.zeros(1)})


def test_a_trained_start_is_nearer_to_its_prompt(teacher: Teacher, generator: VQGAN) -> None:
    trainer = make(teacher, generator, training=8.0)
    trainer.advance(trainer.total)
    config = dataclasses.replace(trainer.manifest.synthesis, steps=1)
    targets, seeds = trainer.prompts, [1, 2, 3, 4]
    plain = Synthesiser(teacher, generator, config)(targets, seeds)
    started = Synthesiser(teacher, generator, config, trainer.start.latents)(targets, seeds)
    assert bool((started.losses < plain.losses - 0.1).all())
    one, two = (trainer.start.latents(targets[:1], [seed]) for seed in (1, 2))
    assert not torch.allclose(one, two)


def test_weights_come_back_and_others_are_refused(generator: VQGAN, trainer: Trainer) -> None:
    trainer.advance(1)
    again = fresh_start(manifest(), generator, trainer.prompts.shape[1], torch.device("cpu"))
    again.load(trainer.start.save(), "start.safetensors")
    assert again.save() == trainer.start.save()
    for data in (b"nothing", Start(16, generator, 64, width=8, seed=0).save()):
        with pytest.raises(CorruptionError, match=r"s3://b/start: not the start network of this"):
            again.load(data, "s3://b/start")


def test_what_diverges_is_refused(trainer: Trainer) -> None:
    trainer.prompts = torch.full_like(trainer.prompts, torch.nan)
    with pytest.raises(DfkdError, match="lower its learning_rate"):
        trainer.advance(1)


def test_noise_depends_on_the_seed_alone() -> None:
    assert torch.equal(amortised.noise([3, 5])[1], amortised.noise([5])[0])
    assert not torch.equal(amortised.noise([3])[0], amortised.noise([5])[0])


def test_fewer_steps_without_a_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DfkdError, match=r"amortised.refinement: must be 1 without training"):
        Amortised(refinement=0.5)
