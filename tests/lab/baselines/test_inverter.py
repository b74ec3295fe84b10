"""What the methods share: the teacher as a classifier, its taps, a part's request, and the state.

A part made from a state is the part of the run that went on.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dfkd.errors import DfkdError
from dfkd.lab.baselines import cmi
from dfkd.lab.baselines.inverter import (
    Inverter,
    PartRequest,
    embedding_taps,
    even_batches,
    stage_taps,
)
from dfkd.lab.baselines.networks import DfadGenerator, PreGenerator
from dfkd.lab.baselines.settings import Cmi, Dfad, Inversion, Pre
from dfkd.models.teacher import Teacher
from dfkd.synthesis.image_source import synthesised
from tests.helpers.inversion_runs import CHAINED, METHODS, problem, read, run_context
from tests.helpers.tiny_models import RESNET, load_teacher, model_config


def settings_of(method: str, *overrides: str) -> Inversion:
    found = read(f"synthesis.source={method}", *overrides).source
    assert isinstance(found, Inversion)
    return found


def begun(teacher: Teacher, settings: Inversion, *parts: torch.Tensor) -> Inverter:
    classifier, _ = problem(teacher, 0)
    made: Inverter = resolve_name(settings.inverter)(classifier, run_context(6, *parts), settings)
    return made


def run(part: int) -> PartRequest:
    seeds = range(2 * part, 2 * part + 2)
    return PartRequest(torch.tensor([0, 1]), seeds, part=part, before=2 * part)


def test_only_chained_methods_have_a_state(teacher: Teacher) -> None:
    for method in METHODS:
        settings = settings_of(method)
        carries = bool(begun(teacher, settings).state())
        assert carries == (settings.scope == "run") == (method in CHAINED)


@pytest.mark.parametrize("method", CHAINED)
def test_a_part_from_a_state_is_the_one_of_the_run_that_went_on(
    method: str, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmi, "NEGATIVES", 3)  # fewer than the bank holds, so that draws count
    settings = settings_of(method, "synthesis.pre.rounds=3", "synthesis.cmi.steps=6")
    whole = begun(teacher, settings)
    first = whole.make(run(0)).pixels
    states = [whole.state()]
    whole.context = run_context(6, first)
    second = whole.make(run(1)).pixels
    states.append(whole.state())
    assert any(not torch.equal(states[1][key], states[0][key]) for key in states[0])

    resumed = begun(teacher, settings, first, second)
    resumed.restore(states[0])
    assert torch.equal(resumed.make(run(1)).pixels, second)
    after = resumed.state()
    assert after.keys() == states[1].keys()
    assert all(torch.equal(after[key], states[1][key]) for key in after)
    # The chain matters: from the start the same part is another.
    alone = begun(teacher, settings, first)
    assert not torch.equal(alone.make(run(1)).pixels, second)


@pytest.mark.parametrize(
    "make", [lambda: DfadGenerator(5, 4, 16), lambda: PreGenerator(5, 4, 16, spectral=True)]
)
def test_a_purpose_gives_the_same_network_and_touches_no_global_state(
    make: Callable[[], nn.Module], teacher: Teacher
) -> None:
    inverter, latents = begun(teacher, settings_of("dfad")), torch.randn(6, 5)
    before = torch.get_rng_state()
    one, two, other = (inverter.new_network(make, purpose) for purpose in ("a", "a", "b"))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.training
    assert torch.equal(one(latents), two(latents))
    assert not torch.equal(one(latents), other(latents))


def test_each_run_and_purpose_has_a_seed_of_its_own() -> None:
    contexts = [dataclasses.replace(run_context(), seed=seed) for seed in (5, 6)]
    assert len({context.seed_of(purpose) for context in contexts for purpose in "ab"}) == 4


@pytest.mark.parametrize(
    ("settings", "latent"),
    [(Dfad(width=4), 256), (Cmi(width=4), 256), (Pre(width=4), 1000), (Pre(latent=8, width=4), 8)],
)
def test_latents_are_as_wide_as_published_unless_the_manifest_says_otherwise(
    settings: Inversion, latent: int, teacher: Teacher
) -> None:
    assert vars(begun(teacher, settings))["latent"] == latent


@pytest.mark.parametrize("method", CHAINED)
def test_a_part_that_diverges_ends_the_chain(
    method: str, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"dfkd.lab.baselines.{method}.LEARNING_RATE", 1e35)
    inverter = begun(teacher, settings_of(method))
    with pytest.raises(DfkdError, match=rf"synthesis\.{method}: diverged in part 0, on which all"):
        inverter.make(PartRequest(torch.tensor([0, 1, 0, 1]), range(4)))


def test_logits_are_scaled_cosines_without_their_mean(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0)
    pixels = torch.rand(3, 3, 64, 64)
    cosines = (teacher.encode_image(pixels) @ classifier.texts.T).numpy()
    scaled = teacher.logit_scale * cosines
    logits = classifier.logits(pixels)
    assert np.allclose(logits, scaled - scaled.mean(axis=1, keepdims=True), atol=1e-4)
    expected = torch.tensor(scaled).softmax(1)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


def test_probabilities_are_those_of_the_stored_pixels(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0)
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    pixels = images.permute(0, 3, 1, 2) / 255
    assert torch.allclose(classifier.probabilities(images), classifier.logits(pixels).softmax(1))


def test_normalised_pixels_are_what_the_layers_see(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0)
    pixels = torch.rand(2, 3, 8, 8)
    normalised = classifier.normalise(pixels)
    red = (pixels[0, 0, 0, 0] - teacher.mean[0, 0, 0, 0]) / teacher.std[0, 0, 0, 0]
    assert torch.isclose(normalised[0, 0, 0, 0], red)
    assert torch.allclose(classifier.denormalise(normalised), pixels, atol=1e-6)


def test_draws_depend_on_the_images_and_the_purpose() -> None:
    one, two = (PartRequest(torch.tensor([0, 1]), seeds) for seeds in ([1, 2], [1, 3]))
    same = PartRequest(one.labels, (1, 2))
    assert one.make_rng("a").initial_seed() == same.make_rng("a").initial_seed()
    assert len({r.make_rng(p).initial_seed() for r in (one, two) for p in "ab"}) == 4
    part = one.select(slice(1, 2))
    assert (part.labels.tolist(), list(part.seeds)) == ([1], [2])


def test_an_image_whose_loss_is_no_number_has_diverged() -> None:
    pixels = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    made = synthesised(pixels, torch.tensor([1.0, torch.nan, -torch.inf]), 4)
    assert made.diverged.tolist() == [False, True, True]
    assert made.steps.tolist() == [4, 4, 4]


@given(st.integers(1, 500), st.integers(1, 300))
def test_batches_are_few_and_even_and_hold_every_image_once(count: int, size: int) -> None:
    found = even_batches(count, size)
    assert [row for rows in found for row in range(count)[rows]] == list(range(count))
    sizes = [rows.stop - rows.start for rows in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == -(-count // size)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
def test_parts_share_all_rounds_and_each_has_one(images: int, size: int, more: int) -> None:
    """A manifest must have at least as many rounds as parts."""
    whole, starts = run_context(images), range(0, images, size)
    total = len(starts) + more
    found = [
        PartRequest(torch.empty(0), range(start, min(start + size, images)), before=start).rounds(
            total, whole
        )
        for start in starts
    ]
    assert [number for rounds in found for number in rounds] == list(range(total))
    assert all(found)


def test_stages_are_those_of_a_resnet(tmp_path: Path, teacher: Teacher) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    with stage_taps(teacher) as taps:
        teacher.encode_image(pixels)
        widths = [features.shape for features in taps.values]
    inner = [teacher.model.get_submodule(f"visual.layer{n}.0.conv1") for n in (1, 2, 3, 4)]
    assert widths == [(2, conv.in_channels) for conv in inner]
    vit = load_teacher(tmp_path / "vit", model_config())
    with stage_taps(vit) as taps:
        assert not taps._handles
    other = load_teacher(tmp_path / "resnet", model_config(RESNET))
    with stage_taps(other) as taps:
        other.encode_image(pixels)
        assert len(taps.values) == 4


def test_a_stage_is_read_as_the_mean_over_positions(teacher: Teacher) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    visual = teacher.model.get_submodule("visual")
    x = (pixels - teacher.mean) / teacher.std
    for name, module in visual.named_children():
        if name == "layer1":
            break
        x = module(x)
    with stage_taps(teacher) as taps:
        teacher.encode_image(pixels)
        assert torch.allclose(taps.values[0], x.mean(dim=(2, 3)), atol=1e-5)


def test_the_embedding_is_read_before_it_is_normalised(teacher: Teacher) -> None:
    with embedding_taps(teacher) as taps:
        unit = teacher.encode_image(torch.rand(2, 3, 64, 64))
        (raw,) = taps.values
    assert torch.allclose(nn.functional.normalize(raw, dim=1), unit, atol=1e-6)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(2), atol=1e-2)
