"""Hidden states of stored prompts: those whose pooled state is the prompt's own embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.models.generators.generator import TextInput
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt
from dfkd.prompts.maker import PromptMaker
from tests.helpers import small_manifest


def read(tmp_path: Path, method: str, **prompts: Any) -> Manifest:
    fast = {
        "random": {"scale": 3.0},
        "contrastive": {"scale": 3.0, "updates": 3, "batch_size": 4},
    }
    return small_manifest.read(
        tmp_path,
        classes=["dog", "house", "car"],
        prompts={"method": method, "styles": "miniature", **fast, **prompts},
        synthesis={"images_per_class": 3, "shard_size": 3, "image_size": 64},
    )


def stored(table: pa.Table) -> list[StoredPrompt]:
    targets = torch.from_numpy(np.stack(table["embedding"].to_numpy()))
    columns = (table[key].to_pylist() for key in ("class_index", "index", "seed", "text"))
    return list(map(StoredPrompt, *columns, targets, table["pseudo"].to_numpy()))


def pooled(teacher: Teacher, states: Tensor, ends: list[int]) -> Tensor:
    """Unit embeddings of the states at the ends of their texts."""
    text: Any = teacher.text
    rows = states[torch.arange(len(states)), torch.tensor(ends)]
    return F.normalize(rows @ text.text_projection, dim=-1)


def ends(states: Tensor, again: Tensor) -> list[int]:
    """Where padding begins: the tokens behind an end differ between two kinds of padding."""
    differs = (states - again).abs().amax(dim=2) > 1e-6
    return [int(row.nonzero()[0]) - 1 for row in differs]


@pytest.mark.parametrize("method", ["vanilla", "random", "contrastive"])
def test_the_pooled_state_is_the_stored_embedding(
    method: str, tmp_path: Path, teacher: Teacher
) -> None:
    manifest = read(tmp_path, method)
    prompts = stored(PromptMaker(manifest, teacher).part(0))
    layers = len(teacher.text.transformer.resblocks)
    one, two = (
        ConditionEncoder(manifest, teacher, TextInput(layers, end))(prompts).prompts
        for end in (False, True)
    )
    assert one.shape == (9, teacher.context_length, teacher.token_table.shape[1])
    expected = torch.stack([prompt.embedding for prompt in prompts])
    torch.testing.assert_close(pooled(teacher, one, ends(one, two)), expected, atol=1e-4, rtol=1e-4)


def test_states_of_mix_are_mixed_like_its_embeddings(tmp_path: Path, teacher: Teacher) -> None:
    manifest = read(tmp_path, "mix")
    table = PromptMaker(manifest, teacher).part(0)
    states = ConditionEncoder(manifest, teacher, TextInput(1, False))
    made = states(stored(table)).prompts
    for row, text in zip(made, table["text"].to_pylist(), strict=True):
        one, _, two = text.partition(" + ")
        (share, one), (_, two) = (each.split(" ", 1) for each in (one, two))
        first, second = states.of_texts([one, two])
        # The weight in the text is rounded to three digits.
        expected = float(share) * first + (1 - float(share)) * second
        torch.testing.assert_close(row, expected, atol=1e-2, rtol=0)


def test_a_prompt_s_states_do_not_depend_on_others(tmp_path: Path, teacher: Teacher) -> None:
    manifest = read(tmp_path, "random")
    prompts = stored(PromptMaker(manifest, teacher).part(0))
    states = ConditionEncoder(manifest, teacher, TextInput(2, True))
    together = states(prompts)
    torch.testing.assert_close(
        states(prompts[4:5]).prompts[0], together.prompts[4], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(together.empty[0], states.of_texts(["", "x"])[0], atol=1e-5, rtol=0)
