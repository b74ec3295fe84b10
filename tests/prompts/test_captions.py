"""Captions: which file is refused, which text an image gets, and what a run makes of them."""

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfkd import api
from dfkd.cluster.making import identify
from dfkd.cluster.worker import Worker
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptPart, part_rows
from dfkd.dataset.versions import begin
from dfkd.errors import ManifestError, WeightsError
from dfkd.models.teacher import Teacher
from dfkd.operations.preflight import check_synthesis, note_surprises
from dfkd.prompts.captions import CaptionPrompts, read_captions
from dfkd.prompts.maker import PromptMaker, check_prompts
from dfkd.prompts.settings import Captions
from dfkd.storage.local import open_storage
from tests.helpers import small_manifest
from tests.helpers.workers import own_worker

DOGS = ["a dog asleep", "a dog on a sofa", "a dog from above"]
CATS = ["a cat on one leg", "a cat in a box"]
LINES = [{"class": "dog", "text": text} for text in DOGS]
LINES += [{"class": "cat", "text": text} for text in CATS]


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def read(folder: Path, lines: list[Any], *overrides: str, **synthesis: int) -> Manifest:
    return small_manifest.read(
        folder,
        *overrides,
        prompts={"method": "captions", "captions": {"file": str(write(folder, lines))}},
        synthesis={"images_per_class": 12, "shard_size": 4, **synthesis},
        storage={"root": str(folder / "run")},
    )


def test_a_text_without_a_class_serves_every_class_by_its_meaning(tmp_path: Path) -> None:
    lines = [*LINES, {"text": " a {class} at night "}]
    manifest = read(tmp_path, lines, "classes=[dog, {name: cat, prompt: 'cat, a pet'}]")
    texts = read_captions(tmp_path / "captions.jsonl", manifest)
    assert list(texts[0]) == [*DOGS, "a dog at night"]
    assert list(texts[1]) == [*CATS, "a cat, a pet at night"]
    assert list(texts[1].values()) == [4, 5, 6]


def test_marks_and_empty_lines_of_an_editor_are_no_texts(tmp_path: Path) -> None:
    manifest = read(tmp_path, LINES)
    path = tmp_path / "captions.jsonl"
    plain = read_captions(path, manifest)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_captions(path, manifest) == plain


@pytest.mark.parametrize(
    ("content", "line", "rule"),
    [
        (b"```json", 6, "must be a JSON object on one line, got '```json'"),
        (b'["dog", "a dog"]', 6, "must be a JSON object on one line"),
        (b'{"class": "dog", "class": "cat", "text": "a"}', 6, "must be a JSON object"),
        (b'{"class": "dog", "text": "a d\xf6g"}', 6, "must be UTF-8"),
        (b'{"class": "dog", "text": "a", "style": "b"}', 6, "only the keys class and text, got"),
        (b'{"class": "dog"}', 6, "text must not be empty, got None"),
        (b'{"class": "dog", "text": "  "}', 6, "text must not be empty"),
        (b'{"class": "dog", "text": 5}', 6, "text must not be empty, got 5"),
        (b'{"class": "horse", "text": "a horse"}', 6, "class must be one of classes, got 'horse'"),
        (b'{"class": ["dog"], "text": "a dog"}', 6, "class must be one of classes"),
        (b'{"class": null, "text": "a {class}"}', 6, "class must be one of classes, got None"),
        (b'{"class": "dog", "text": "a dog\\nasleep"}', 6, "text must be printable"),
        (b'{"class": "dog", "text": "' + b"a" * 2001 + b'"}', 6, "at most 2000 letters"),
        (b'{"class": "dog", "text": "a {class}"}', 6, "text must have {class} once without"),
        (b'{"text": "a dog"}', 6, "text must have {class} once without a class"),
        (b'{"text": "a {class} of {style}"}', 6, "text must have {class} once without a class"),
        (b'{"class": "dog", "text": "A  Dog asleep"}', 6, "must differ from that of line 1, also"),
        (b'{"class": "cat", "text": "a dog asleep"}', 6, "must differ from that of line 1, also"),
        (b'{"text": "a {class} asleep"}', 6, "must differ from that of line 1, also"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(
    content: bytes, line: int, rule: str, tmp_path: Path
) -> None:
    manifest = read(tmp_path, LINES)
    path = tmp_path / "captions.jsonl"
    path.write_bytes(path.read_bytes() + content)
    with pytest.raises(ManifestError) as caught:
        read_captions(path, manifest)
    assert str(caught.value).startswith(f"prompts.captions.file: {path}:{line}: ")
    assert rule in str(caught.value)


def test_a_credential_is_refused_and_not_repeated(tmp_path: Path) -> None:
    manifest = read(tmp_path, [*LINES, {"class": "cat", "text": "a cat password=hunter2"}])
    with pytest.raises(ManifestError, match="must not hold credentials") as caught:
        read_captions(tmp_path / "captions.jsonl", manifest)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_cannot_serve_is_refused_before_any_work(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ManifestError, match=r"must have a text of every class, got 'none of cat'"):
        check_synthesis(read(tmp_path, LINES[:3]))
    marked = {"class": "cat", "text": "a cat <end_of_text> asleep"}
    with pytest.raises(ManifestError, match=r"captions\.jsonl:6: the teacher must be able to read"):
        check_prompts(read(tmp_path, [*LINES, marked]), teacher)
    monkeypatch.setattr("dfkd.prompts.captions.MAX_TEXTS", 4)
    with pytest.raises(ManifestError, match=r":5: at most 4 texts"):
        check_prompts(read(tmp_path, LINES), teacher)
    monkeypatch.setattr("dfkd.prompts.captions.MAX_BYTES", 40)
    with pytest.raises(ManifestError, match=r"^prompts\.captions\.file: at most 40 bytes"):
        check_prompts(read(tmp_path, LINES), teacher)
    with pytest.raises(ManifestError, match=r"^prompts\.captions\.file: must be an existing file"):
        check_prompts(read(tmp_path, LINES, "prompts.captions.file=missing"), teacher)
    with pytest.raises(ManifestError, match=r"^prompts\.captions\.file: is required"):
        read(tmp_path, LINES, "prompts={method: captions, captions: {}}")


def test_counts_and_what_is_cut_are_told(
    tmp_path: Path, teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    room = teacher.context_length - 2
    note_surprises(read(tmp_path, LINES), teacher)
    counts = "prompts.captions.file: 5 texts, 2 to 3 a class for 12 images (cat 2, dog 3)"
    assert capsys.readouterr().err.splitlines() == [f"note: {counts}"]
    fits, cut = (" ".join(["cat"] * length) for length in (room, room + 1))
    longest = f"{fits} red tree"
    lines = [{"class": "cat", "text": text} for text in (fits, cut, longest)]
    manifest = read(tmp_path, LINES + lines)
    check_prompts(manifest, teacher)  # a text that is cut is no error
    note_surprises(manifest, teacher)
    told = capsys.readouterr().err
    assert f": 2 of 8 texts are longer than the {room} tokens" in told
    assert f"captions.jsonl:8, has {room + 2} and loses 'red tree'" in told


def assigned(manifest: Manifest, teacher: Teacher) -> list[str]:
    """The text of each image, in the order of class and index."""
    settings = manifest.prompt_settings
    assert isinstance(settings, Captions)
    method = CaptionPrompts(manifest, teacher, settings)
    shards = range(-(-manifest.synthesis.images_per_class // manifest.synthesis.shard_size))
    rows = [row for part in shards for row in part_rows(manifest, part)]
    rows.sort(key=lambda row: (row.class_index, row.index))
    return method.draw(rows, 0).texts


@pytest.mark.heavy
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    images=st.integers(1, 30),
    shard=st.integers(1, 30),
    texts=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    salt=st.integers(0, 3),
)
def test_an_image_s_text_depends_on_itself_alone_and_all_are_used_evenly(
    images: int, shard: int, texts: int, seed: int, salt: int, tmp_path: Path, teacher: Teacher
) -> None:
    dogs = [{"class": "dog", "text": f"a dog and {number} cats"} for number in range(texts)]
    lines = [*dogs, *({"class": "cat", "text": text} for text in CATS)]
    root = (f"seed={seed}", f"salt={salt}")
    size = {"images_per_class": images, "shard_size": shard}
    found = assigned(read(tmp_path, lines, *root, **size), teacher)
    uses = Counter(found[:images])
    assert len(uses) == min(images, texts)
    assert max(uses.values()) - min(uses[line["text"]] for line in dogs) <= 1
    # More images, other shards, another order of classes and another class change no text.
    more = {"images_per_class": images + 5, "shard_size": 7}
    classes = "classes=[horse, cat, dog]"
    horse = {"class": "horse", "text": "a horse"}
    again = assigned(read(tmp_path, [*lines, horse], *root, classes, **more), teacher)
    assert again[2 * (images + 5) :][:images] == found[:images]
    assert again[images + 5 :][:images] == found[images:]


def test_another_seed_gives_the_texts_another_order(tmp_path: Path, teacher: Teacher) -> None:
    lines = [{"text": f"{number} {{class}}"} for number in range(12)]
    orders = {tuple(assigned(read(tmp_path, lines, f"seed={n}"), teacher)) for n in range(3)}
    orders.add(tuple(assigned(read(tmp_path, lines, "salt=1"), teacher)))
    assert len(orders) == 4
    assert len({frozenset(order) for order in orders}) == 1


def test_a_prompt_is_the_embedding_of_its_text(tmp_path: Path, teacher: Teacher) -> None:
    table = PromptMaker(read(tmp_path, LINES), teacher).part(0).to_pydict()
    assert sorted(table["text"][:3]) == sorted(DOGS)
    assert set(table["class"]) == {"dog", "cat"}
    expected = teacher.encode_text(table["text"])
    assert torch.allclose(torch.tensor(table["embedding"]), expected, atol=1e-5)


def test_a_node_with_another_file_is_refused(tmp_path: Path) -> None:
    manifest = read(tmp_path, LINES)
    version = begin(open_storage(manifest.storage.root), identify(manifest))
    write(tmp_path, LINES[1:])
    worker = own_worker(manifest, version, Worker)
    with pytest.raises(WeightsError, match=r"^prompts\.captions\.file: must be the same on every"):
        worker.run(PromptPart(0))
    write(tmp_path, LINES)
    assert worker.run(PromptPart(0)).result == 0


@pytest.mark.usefixtures("two_cpus")
def test_a_diffusion_model_draws_captions_of_classes_with_meanings(
    tmp_path: Path, teacher: Teacher
) -> None:
    path = write(tmp_path, [{"class": "pet", "text": "a dog asleep"}, {"text": "a red {class}"}])
    manifest = small_manifest.read(
        tmp_path,
        classes=[{"name": "pet", "prompt": "dog"}, "tree"],
        prompts={"method": "captions", "captions": {"file": str(path)}},
        generator={
            "kind": "diffusers",
            "diffusers": {"weights": "miniature", "steps": 2, "guidance": 3.0},
        },
        synthesis={"images_per_class": 2, "shard_size": 2, "image_size": 64},
        storage={"root": str(tmp_path / "run")},
    )
    (built,) = api.synthesize(manifest)
    version = built.version
    assert (version.classes, built.images) == (("pet", "tree"), 4)
    assert version.facts["identity"]["classes"] == [{"name": "pet", "prompt": "dog"}, "tree"]
    texts = version.prompt_part("00000")["text"].to_pylist()
    assert sorted(texts) == ["a dog asleep", "a red dog", "a red tree", "a red tree"]
    samples = []
    shard = f"{version.storage.location('shards')}/0000-00000.tar"
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                stream = tar.extractfile(member)
                assert stream is not None
                samples.append(json.load(stream))
    assert [each["class"] for each in samples] == ["pet", "pet"]
    assert [each["prompt"] for each in samples] == texts[:2]
    # The same command finds all of it.
    assert api.synthesize(manifest)[0].version.id == version.id
