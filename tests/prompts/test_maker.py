"""Each method gives each image the prompt that the paper's equations give it, from its own seed."""

from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock, call, create_autospec

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import part_count, part_name
from dfkd.config.synthesis import Prompts
from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive as contrastive_prompts
from dfkd.prompts.contrastive import ContrastivePrompts, PromptBank
from dfkd.prompts.maker import SCHEMA, PromptMaker, check_prompts
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.settings import Contrastive, Random
from dfkd.prompts.statistics import statistics
from dfkd.prompts.styles import PAPER, mixture
from tests.helpers import small_manifest


def read(tmp_path: Path, *overrides: str) -> Manifest:
    return small_manifest.read(
        tmp_path,
        *overrides,
        classes=["dog", "house", "car"],
        prompts={
            "styles": ["music", "metal", "water"],
            "random": {"scale": 3.0},
            "contrastive": {"scale": 3.0},
        },
        synthesis={"images_per_class": 10, "shard_size": 4},
    )


def contrastive(tmp_path: Path, settings: str, *overrides: str) -> Manifest:
    method = ("prompts.method=contrastive", f"prompts.contrastive={{scale: 3.0, {settings}}}")
    return read(tmp_path, *method, *overrides)


SMALL = "updates: 3, batch_size: 5, learning_rate: 0.02, bank: 8"


def make(manifest: Manifest, teacher: Teacher, part: int = 0) -> dict[str, list[object]]:
    return PromptMaker(manifest, teacher).part(part).to_pydict()


def unit(vectors: list[object]) -> torch.Tensor:
    found = torch.tensor(vectors)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    return found


def test_vanilla_is_the_class_prompt(tmp_path: Path, teacher: Teacher) -> None:
    table = make(read(tmp_path, "prompts.method=vanilla"), teacher)
    assert table["text"][:4] == ["A dog"] * 4
    house = teacher.encode_text(["A house"])[0]
    assert torch.allclose(unit(table["embedding"])[4], house, atol=1e-6)
    assert table["pseudo"] == [None] * 12


def test_mix_is_equation_6(tmp_path: Path, teacher: Teacher) -> None:
    table = make(read(tmp_path, "prompts.method=mix"), teacher)
    embeddings = unit(table["embedding"])
    for row, text in enumerate(table["text"]):
        weights, sentences = zip(
            *(str(p).split(" ", 1) for p in str(text).split(" + ")), strict=True
        )
        assert len(set(sentences)) == 2
        assert all(f"{table['class'][row]} in the style of" in s for s in sentences)
        one, two = teacher.encode_text(list(sentences))
        expected = F.normalize(float(weights[0]) * one + float(weights[1]) * two, dim=0)
        assert torch.allclose(embeddings[row], expected, atol=2e-3)  # the text rounds lambda


def test_each_seed_has_styles_and_a_weight_of_its_own(tmp_path: Path) -> None:
    styles = read(tmp_path).prompts
    assert len({mixture(styles, seed) for seed in range(20)}) == 20


def test_random_is_equations_8_to_11(tmp_path: Path, teacher: Teacher) -> None:
    many = "synthesis={images_per_class: 200, shard_size: 200}"
    manifest = read(tmp_path, "prompts.method=random", many)
    table = make(manifest, teacher)
    pseudo = torch.tensor(table["pseudo"])
    mean, deviation = teacher.token_table.mean(dim=0), teacher.token_table.std(dim=0)
    noise = (pseudo - mean) / (3.0 * deviation)
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    words = PseudoWords(teacher, manifest.prompts.template)
    again = words.encode(["dog"], pseudo[:1]).detach()
    assert torch.allclose(unit(table["embedding"])[:1], again, atol=1e-5)


def test_a_prompt_of_mix_or_random_depends_on_its_own_image_only(
    tmp_path: Path, teacher: Teacher
) -> None:
    for method in ("mix", "random"):
        whole = make(read(tmp_path, f"prompts.method={method}"), teacher, part=1)
        other = read(tmp_path, f"prompts.method={method}", "synthesis.shard_size=2")
        part = make(other, teacher, part=2)  # indices 4 and 5 of every class
        rows = [0, 1, 4, 5, 8, 9]
        assert torch.allclose(unit(part["embedding"]), unit(whole["embedding"])[rows], atol=1e-5)


def test_contrastive_starts_from_random_and_a_new_maker_resumes_the_bank(
    tmp_path: Path, teacher: Teacher
) -> None:
    manifest = contrastive(tmp_path, SMALL)
    maker = PromptMaker(manifest, teacher)
    parts = [maker.part(p) for p in range(part_count(manifest))]
    still = contrastive(tmp_path, SMALL, "prompts.contrastive.learning_rate=1e-9")
    start, random = (
        PromptMaker(each, teacher).part(0)
        for each in (still, read(tmp_path, "prompts.method=random"))
    )
    assert torch.allclose(
        *(unit(each["embedding"].to_pylist()) for each in (start, random)), atol=1e-5
    )
    late = PromptMaker(manifest, teacher)
    late.remember(2, parts.__getitem__)
    assert late.part(2).equals(parts[2])
    assert not PromptMaker(manifest, teacher).part(2).equals(parts[2])


def test_each_part_and_salt_has_an_order_and_its_batches_have_seeds_of_their_own(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = create_autospec(ContrastivePrompts.draw, side_effect=ContrastivePrompts.draw)
    monkeypatch.setattr(ContrastivePrompts, "draw", drawn)
    settings = "updates: 1, batch_size: 5"
    manifests = [contrastive(tmp_path, settings, f"salt={salt}") for salt in (0, 1)]
    orders = {tuple(make(m, teacher, part)["order"]) for m in manifests for part in (0, 1)}
    assert len(orders) == 4
    seeds = [batch_seed for (_, _, batch_seed), _ in drawn.call_args_list]
    assert len(set(seeds)) == len(seeds) == 12  # three batches of each


def bank_of(maker: PromptMaker) -> PromptBank:
    assert isinstance(maker.method, ContrastivePrompts)
    return maker.method.bank


def test_a_bank_is_filled_from_no_more_parts_than_it_can_hold(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive_prompts, "MAX_BANK", 12)
    settings = "updates: 1, batch_size: 5, bank: 8"
    manifest = contrastive(tmp_path, settings, "synthesis.shard_size=2")
    maker = PromptMaker(manifest, teacher)
    parts = [maker.part(number) for number in range(part_count(manifest))]
    late, table = PromptMaker(manifest, teacher), Mock(side_effect=parts.__getitem__)
    late.remember(len(parts), table)
    assert table.mock_calls == [call(len(parts) - 1), call(len(parts) - 2)]  # of six prompts each
    assert torch.equal(bank_of(late).embeddings, bank_of(maker).embeddings)
    assert len(bank_of(late)) == 12


def test_a_contrastive_text_is_that_of_its_embedding(tmp_path: Path, teacher: Teacher) -> None:
    """The embedding is that of the updated pseudo-word, and that of the random one is another."""
    manifest = contrastive(tmp_path, "updates: 4, learning_rate: 0.2, batch_size: 12")
    maker = PromptMaker(manifest, teacher)
    table = maker.part(0).to_pydict()
    random = PromptMaker(read(tmp_path, "prompts.method=random"), teacher).part(0)
    embeddings, initial = (unit(each["embedding"]) for each in (table, random.to_pydict()))
    words = PseudoWords(teacher, manifest.prompts.template)
    expected = words.encode(table["class"], torch.tensor(table["pseudo"])).detach()
    assert table["text"] == [words.text(name) for name in table["class"]]
    assert torch.allclose(embeddings, expected, atol=1e-4)
    assert not torch.isclose(embeddings, initial, atol=1e-3).all(dim=1).any()


def test_statistics_by_hand() -> None:
    """Three prompts, of which two share a direction and one is nearest to a foreign class."""
    rows = {name: [None] * 3 for name in SCHEMA.names}
    rows["class_index"] = [0, 0, 1]
    rows["embedding"] = [[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]
    table, classes = pa.table(rows, schema=SCHEMA), np.array([[1.0, 0.0], [0.8, -0.6]])
    found = statistics([table], classes)
    assert found["prompts"] == 3
    assert found["similarity"] == pytest.approx((1.0 + 0.6 + 0.6) / 3)
    assert found["similarity_in_class"] == pytest.approx(1.0)
    assert found["own_class"] == pytest.approx(2 / 3)
    assert found["twins"] == pytest.approx(2 / 3)
    # K / 3 with cosines 1, 0.6 and 0.6: its eigenvalues are 1/2 +- sqrt(1/4 - 2 * 0.64 / 9).
    root = np.sqrt(1 / 4 - 2 * 0.64 / 9)
    values = np.array([0.5 + root, 0.5 - root])
    assert found["vendi"] == pytest.approx(np.exp(-(values * np.log(values)).sum()))
    assert statistics([table] * 2, classes)["prompts"] == 6


EVERY_KEY = (
    "template='{class}, {style}'",
    "styles=[music, metal]",
    "random.scale=2999.0",
    "contrastive.scale=2999.0",
    "contrastive.updates=3",
    "contrastive.learning_rate=0.2",
    "contrastive.batch_size=3",
    "contrastive.bank=0",
    "contrastive_variant.positive=substitute",
    "contrastive_variant.negatives=intra-class",
)


@pytest.mark.parametrize(
    "method", ["vanilla", "mix", "random", "contrastive", "contrastive_variant"]
)
def test_the_fingerprint_has_the_keys_that_change_prompts_and_no_others(
    tmp_path: Path, teacher: Teacher, method: str
) -> None:
    """The parts fill the bank."""
    base = (
        f"prompts.method={method}",
        "classes=[house, home, building]",
        "prompts.random.scale=3000.0",
        "prompts.contrastive={scale: 3000.0, updates: 2, batch_size: 4}",
        "prompts.contrastive_variant={scale: 3000.0, updates: 2, batch_size: 4}",
        "synthesis.images_per_class=12",
    )

    def outcome(*overrides: str) -> tuple[object, str]:
        manifest = read(tmp_path, *base, *overrides)
        maker, made = PromptMaker(manifest, teacher), []
        for part in range(part_count(manifest)):
            maker.remember(part, made.__getitem__)
            made.append(maker.part(part))
        rows = [row for table in made for row in table.to_pylist()]
        return rows, fingerprint(identity(manifest, {}))

    prompts_, name = outcome()
    schemas = {"random": Random, "contrastive": Contrastive}
    keys = {f"{name}.{key.name}" for name, each in schemas.items() for key in fields(each)}
    given = {key.partition("=")[0] for key in EVERY_KEY}
    assert given >= keys | {key.name for key in fields(Prompts)} - {"method", "kinds"}
    for override in EVERY_KEY:
        other, other_name = outcome(f"prompts.{override}")
        assert (other != prompts_) == (other_name != name), override


def test_no_dictionary_names_a_test_domain() -> None:
    assert len(PAPER) == 86
    assert not {"photo", "art painting", "cartoon", "sketch"} & set(PAPER)


@pytest.mark.parametrize("reader", ["prompts.method=mix", "distillation.texts=styles"])
def test_a_styled_prompt_that_would_be_cut_is_refused(
    tmp_path: Path, teacher: Teacher, reader: str
) -> None:
    """Cut texts of two styles would be the same text."""
    fitting, cut = "very " * 5 + "dark", "very " * 40 + "dark"
    check_prompts(read(tmp_path, reader, f"prompts.styles=[music, {fitting}]"), teacher)
    check_prompts(read(tmp_path, f"prompts.styles=[music, {cut}]"), teacher)  # nobody reads it
    with pytest.raises(
        ManifestError, match=f"^prompts.styles: .* at most .* got 'dog in the style of {cut}"
    ):
        check_prompts(read(tmp_path, reader, f"prompts.styles=[music, {cut}]"), teacher)
    name = "dog " * 40 + "house"
    with pytest.raises(
        ManifestError, match=rf"^prompts.styles: .* got '{name} in the style of music"
    ):
        check_prompts(read(tmp_path, reader, f"classes=[dog, {name}]"), teacher)


def test_prompts_of_carried_tasks_are_the_base_versions(tmp_path: Path, teacher: Teacher) -> None:
    """A restart refills the memory bank with fresh prompts only, and gives the same."""
    base = PromptMaker(contrastive(tmp_path, SMALL), teacher)
    parts = {part_name(i): base.part(i) for i in range(2)}
    salted = contrastive(tmp_path, SMALL, "salt=3", "regeneration.classes=[house]")
    maker = PromptMaker(salted, teacher, parts.__getitem__)
    made = [maker.part(i) for i in range(2)]
    for table, old in zip(made, parts.values(), strict=True):
        assert table["index"].equals(old["index"])
        assert table["class_index"].equals(old["class_index"])
        for row, was in zip(table.to_pylist(), old.to_pylist(), strict=True):
            assert (row == was) == (row["class"] != "house")
    late = PromptMaker(salted, teacher, parts.__getitem__)
    late.remember(1, made.__getitem__)
    assert late.part(1).equals(made[1])
