"""The teacher: the split text path, the image path, and distances."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor

from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError
from dfkd.models.labeller import check_classes, distances, spherical_distance
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import find_weights, read_architecture
from dfkd.models.weights.artifacts import hub_id
from dfkd.utils.device import CPU
from dfkd.utils.images import decode_image
from dfkd.utils.pixels import from_bytes
from tests.helpers.http_server import keep_hub_model
from tests.helpers.tiny_models import (
    RESNET,
    TEXTS,
    VIT,
    load_teacher,
    model_config,
    random_model,
    write_teacher,
)

TOWERS = {
    "clip-vit": model_config(VIT),
    "clip-resnet": model_config(RESNET),
    "clip-quickgelu": model_config(VIT, quick=True),
    "custom-vit": model_config(VIT, custom=True),
    "custom-resnet": model_config(RESNET, custom=True),
    "custom-not-causal": model_config(VIT, custom=True, no_causal_mask=True),
}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(tmp_path_factory.mktemp("vit"), model_config(VIT))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(tmp_path_factory.mktemp("resnet"), model_config(RESNET))


def test_a_configuration_beside_a_weight_file_counts(tmp_path: Path) -> None:
    """As it does if the folder is given: both are one download of a hub."""
    config = model_config(VIT)
    weights = Path(write_teacher(tmp_path, config).weights)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (weights.parent / "open_clip_config.json").write_text(json.dumps(content))
    model = write_teacher(tmp_path / "other", config).model
    by_file, by_folder = (
        Teacher.load(TeacherConfig(model=model, weights=str(path)), CPU, "float32")
        for path in (weights, weights.parent)
    )
    assert by_file.mean.flatten().tolist() == by_folder.mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("tower", TOWERS)
def test_the_split_text_path_is_bit_equal_to_encode_text(tower: str, tmp_path: Path) -> None:
    config = TOWERS[tower]
    teacher = load_teacher(tmp_path, config)
    reference = random_model(config).requires_grad_(False)
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=16)(TEXTS)
    assert torch.equal(teacher.tokenize(TEXTS), tokens)
    sentence = teacher.encode_embeddings(teacher.embed_tokens(tokens), tokens)
    assert torch.equal(sentence, reference.encode_text(tokens))
    assert torch.equal(teacher.encode_text(TEXTS), reference.encode_text(tokens, normalize=True))
    assert sentence.shape == (len(TEXTS), teacher.embedding_dim)


def test_gradients_reach_token_embeddings_and_no_weight(vit: Teacher) -> None:
    tokens = vit.tokenize(["a dog"])
    embeddings = vit.embed_tokens(tokens).requires_grad_()
    vit.encode_embeddings(embeddings, tokens).sum().backward()
    end = int(tokens.argmax())
    assert (embeddings.grad[0, : end + 1].abs().sum(dim=1) > 0).all()
    assert embeddings.grad[0, end + 1 :].abs().max() == 0  # what follows the end is never read
    assert not any(weight.requires_grad for weight in vit.model.parameters())
    assert not vit.model.training


def test_what_follows_the_end_may_be_left_out(vit: Teacher) -> None:
    tokens = vit.tokenize(["a dog"])
    short = tokens[:, : int(tokens.argmax()) + 1]
    whole, cut = (vit.encode_embeddings(vit.embed_tokens(each), each) for each in (tokens, short))
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_images_of_the_model_size_are_only_normalised(
    vision: dict[str, Any], tmp_path: Path
) -> None:
    teacher = load_teacher(tmp_path, model_config(vision))
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 50).convert("RGB")
    size = PreprocessCfg(size=32)
    seen = image_transform_v2(size, is_train=False)(picture)
    pixels = torch.tensor(list(picture.tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    expected = random_model(model_config(vision)).encode_image(seen[None], normalize=True)
    torch.testing.assert_close(teacher.encode_image(pixels), expected, atol=2e-5, rtol=0)


FAMILIES = {
    "OpenAI": ("ViT-B-32-quickgelu", "openai"),
    "LAION": ("ViT-B-32", "laion2b_s34b_b79k"),
    "LAION with another mean": ("ViT-L-14", "laion2b_s32b_b82k"),
    "DataComp": ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    "DFN2B": ("ViT-B-16-quickgelu", "dfn2b"),
    "DFN5B": ("ViT-H-14-378-quickgelu", "dfn5b"),
    "MobileCLIP": ("MobileCLIP-S1", "datacompdr"),
    "MobileCLIP2": ("MobileCLIP2-S0", "dfndr2b"),
    "MobileCLIP2 with OpenAI's mean": ("MobileCLIP2-S3", "dfndr2b"),
    "PE-Core": ("PE-Core-T-16-384", "meta"),
    "SigLIP": ("ViT-B-16-SigLIP", "webli"),
    "CLIPA": ("ViT-L-14-CLIPA", "datacomp1b"),
}
"""Published weights, one of each kind of preprocessing."""

SHAPES = [(640, 427), (427, 640), (300, 300), (120, 90), (560, 71)]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_reach_the_tower_as_through_open_clip_s_own_transform(
    family: str, vit: Teacher, tmp_path: Path
) -> None:
    model, tag = FAMILIES[family]
    config = get_pretrained_cfg(model, tag)
    # Only where the weights are is asked; what they are has no part in the pixels.
    keep_hub_model(tmp_path, hub_id(config), Path(__file__))
    stated = find_weights(tag, read_architecture(model), str(tmp_path)).preprocess
    teacher = Teacher(vit.model, vit.tokenizer, model, stated)
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    published = merge_preprocess_dict(PreprocessCfg(size=size), config)
    transform = image_transform_v2(PreprocessCfg(**published), is_train=False)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    for shape in SHAPES:
        picture = ImageOps.fit(photograph, shape)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        square = decode_image(stream.getvalue(), size, teacher.resizing)
        pixels = from_bytes(torch.from_numpy(square.copy())[None])
        seen = ((pixels - teacher.mean) / teacher.std)[0]
        torch.testing.assert_close(seen, transform(picture), atol=2e-6, rtol=0)


def test_no_published_weights_have_a_preprocessing_that_is_not_compared() -> None:
    def kind(model: str, tag: str) -> tuple[Any, ...]:
        config = get_pretrained_cfg(model, tag)
        return tuple(config[key] for key in ("mean", "std", "interpolation", "resize_mode"))

    accepted = set()
    for model in open_clip.list_models():
        with contextlib.suppress(ManifestError):
            accepted.add(read_architecture(model).name)
    published = [(model, tag) for model, tag in open_clip.list_pretrained() if model in accepted]
    assert len(published) > 100
    assert {kind(*each) for each in published} == {kind(*each) for each in FAMILIES.values()}


@pytest.mark.parametrize("side", [24, 50, 96])
def test_other_sizes_are_resized_bicubic_and_antialiased(vit: Teacher, side: int) -> None:
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(vit.encode_image(pixels), vit.encode_image(small))
    plain = F.interpolate(pixels, (32, 32), mode="bicubic")
    if side > 32:
        assert (vit.encode_image(pixels) - vit.encode_image(plain)).abs().max() > 1e-4


def test_the_image_path_passes_gradients_to_pixels(resnet: Teacher) -> None:
    pixels = torch.full((2, 3, 64, 64), 0.5, requires_grad=True)
    embeddings = resnet.encode_image(pixels)
    embeddings[0, 0].backward()
    assert pixels.grad[0].abs().sum() > 0
    assert pixels.grad[1].abs().sum() == 0  # the images of a batch are independent
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))


def test_the_configuration_decides_mean_and_std(tmp_path: Path) -> None:
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    config = write_teacher(tmp_path, model_config(VIT))
    tree = {"model_cfg": model_config(VIT), "preprocess_cfg": preprocess}
    Path(config.model).write_text(json.dumps(tree))
    teacher = Teacher.load(config, CPU)
    pixels = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    expected = random_model(model_config(VIT)).encode_image(torch.zeros(1, 3, 32, 32), True)
    torch.testing.assert_close(teacher.encode_image(pixels), expected)
    large = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.encode_image(large), teacher.encode_image(small))


def test_embeddings_of_bfloat16_are_unit_vectors_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that multiplies bfloat16, which this one may not.
    monkeypatch.setattr("dfkd.models.labeller.multiplies_bfloat16", lambda device: True)
    teacher = Teacher.load(write_teacher(tmp_path, model_config(VIT)), CPU, "bfloat16")
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed, exact = teacher.encode_image(pixels), teacher.encode_image(pixels, "float32")
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)
    assert 0 < float((mixed - exact).abs().max()) < 0.05


def test_texts_beyond_one_batch_are_encoded_too(
    vit: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vit.encode_text(TEXTS)
    monkeypatch.setattr("dfkd.models.labeller.TEXT_BATCH", 3)
    torch.testing.assert_close(vit.encode_text(TEXTS), whole)


def test_an_image_embedding_does_not_depend_on_its_companions(resnet: Teacher) -> None:
    """Bit-equal in a batch of the same size; across sizes the kernels differ in the last bits."""
    draw = torch.Generator().manual_seed(0)
    pixels, others = (torch.rand(4, 3, 32, 32, generator=draw) for _ in range(2))
    others[3] = pixels[1]
    embedding = resnet.encode_image(pixels)[1]
    assert torch.equal(resnet.encode_image(others)[3], embedding)
    alone = resnet.encode_image(pixels[1:2])[0]
    torch.testing.assert_close(alone, embedding, atol=1e-6, rtol=0)


def unit(*values: float) -> Tensor:
    return F.normalize(torch.tensor(values, dtype=torch.float32), dim=0)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (unit(1, 0), unit(1, 0), 0.0),
        (unit(1, 0), unit(0, 1), 2 * (math.pi / 4) ** 2),
        (unit(1, 0), unit(-1, 0), math.pi**2 / 2),
        (unit(1, 0), unit(1, math.sqrt(3)), 2 * (math.pi / 6) ** 2),
        (unit(1, 2, 2), unit(2, 1, -2), 2 * math.asin(math.sqrt(2) / 2) ** 2),
    ],
    ids=["identical", "orthogonal", "antipodal", "60 degrees", "3-d orthogonal"],
)
def test_distances_by_hand(x: Tensor, y: Tensor, expected: float) -> None:
    assert float(spherical_distance(x, y)) == pytest.approx(expected, abs=1e-6)
    assert float(distances(x[None], y[None])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1], ids=["identical", "antipodal"])
def test_the_gradient_is_finite_where_the_arcsin_has_none(sign: int) -> None:
    x = unit(0.6, 0.8, 0.1).requires_grad_()
    spherical_distance(x, sign * x.detach()).backward()
    assert torch.isfinite(x.grad).all()


vectors = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4).filter(
    lambda values: sum(value * value for value in values) > 1e-3
)


@given(vectors, vectors)
def test_the_distance_is_the_published_formula(a: list[float], b: list[float]) -> None:
    x, y = unit(*a).double(), unit(*b).double()
    chord = float((F.normalize(x, dim=0) - F.normalize(y, dim=0)).norm())
    published = 2 * math.asin(min(1.0, chord / 2)) ** 2
    found = float(spherical_distance(x, y))
    assert found == pytest.approx(published, abs=5e-3 if chord > 1.999 else 1e-5)
    assert 0 <= found <= math.pi**2 / 2 + 1e-5
    assert found == float(spherical_distance(y, x))


@given(st.lists(vectors, min_size=1, max_size=5), st.lists(vectors, min_size=1, max_size=5))
@example([[0.0, 0.0, 0.0, 1.0]] * 4, [[0.0, 0.0, 0.0, 1.0]] * 3 + [[0.0, 0.0, 1.0, 0.0]])
def test_the_distance_matrix_holds_every_pair(
    images: list[list[float]], texts: list[list[float]]
) -> None:
    x, y = torch.stack([unit(*v) for v in images]), torch.stack([unit(*v) for v in texts])
    found = distances(x, y)
    assert found.shape == (len(x), len(y))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, spherical_distance(x[:, None], y[None]), atol=1e-5, rtol=0)
    assert torch.equal(found[:1], distances(x[:1], y))


def test_half_precision_inputs_give_float32_distances() -> None:
    x = torch.eye(2, dtype=torch.bfloat16)
    assert spherical_distance(x, x).dtype == distances(x, x).dtype == torch.float32


@pytest.mark.parametrize("name", ["\u3000", "\x1c\x1d", "&#32;"])
def test_a_class_that_tokenises_to_nothing_is_named(vit: Teacher, name: str) -> None:
    with pytest.raises(ManifestError, match="classes: tokenises to nothing") as caught:
        check_classes(vit, ["dog", name])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["dog<end_of_text>tail", "<start_of_text>dog"])
def test_a_class_name_does_not_end_or_start_a_text(vit: Teacher, name: str) -> None:
    """The tokenizer takes these words for marks, and the teacher reads up to the first end."""
    with pytest.raises(ManifestError, match="must not hold the model's mark"):
        check_classes(vit, ["cat", "dog", name])


def test_class_names_must_differ_to_the_teacher_and_fit(vit: Teacher) -> None:
    check_classes(vit, ["dog", "hot dog", "c++", "犬"], "A {class}")
    with pytest.raises(ManifestError, match="reads to the model exactly like 'dog'"):
        check_classes(vit, ["dog", "Dog"])
    check_classes(vit, ["dog " * 14], "{class}")
    with pytest.raises(ManifestError, match="at most 14 tokens, this one 15"):
        check_classes(vit, ["dog " * 14], "A {class}")
