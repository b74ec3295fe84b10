"""The manifest refuses what cannot be run, in one line that names field, rule and value."""

import json
from pathlib import Path

import pytest

from dfkd.api import read_manifest
from dfkd.config.distillation import weights_file
from dfkd.config.manifest import Manifest
from dfkd.config.pipelines import SCHEDULER
from dfkd.errors import ManifestError
from dfkd.lab.baselines.settings import BatchNorm
from dfkd.models.generators.settings import Diffusers
from dfkd.prompts.settings import Contrastive, Random
from dfkd.synthesis.settings import Latents
from dfkd.utils.yaml import dump
from tests.helpers import small_manifest

SAMPLED = "generator={kind: diffusers, diffusers: {weights: miniature"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_manifest.write(tmp_path)


def test_defaults_are_the_papers_numbers(path: Path) -> None:
    manifest = Manifest.read(path)
    assert manifest.synthesis.images_per_class == 3000
    vqgan = manifest.generator.settings
    assert (vqgan.optimisation_steps, vqgan.latent_rate) == (500, 0.15)
    assert (manifest.synthesis.batch_size, manifest.synthesis.image_size) == (8, 224)
    contrastive = manifest.prompt_settings
    assert isinstance(contrastive, Contrastive)
    assert contrastive.scale == Random().scale == 10.0
    assert (contrastive.updates, contrastive.batch_size, contrastive.bank) == (100, 256, 2048)
    assert contrastive.learning_rate == 0.1
    assert manifest.teacher.template == "A {class}"
    distillation = manifest.distillation
    assert (distillation.warmup_epochs, distillation.epochs) == (150, 150)
    assert (distillation.learning_rate, distillation.finetune_factor) == (0.1, 0.1)
    assert distillation.initial_weights == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("override", "field", "rule"),
    [
        ("prompts.methd=mix", "prompts.methd", "neither a key nor a kind"),
        ("prompts.metod=mix", "prompts.metod", "did you mean 'method'"),
        ("synthesis={views: 0, view_noise: 0.1}", "synthesis.view_noise", "with synthesis.views=0"),
        ("generator.vqgan.steps=0", "generator.vqgan.steps", "greater than or equal to 1"),
        ("generator.vqgan.steps=1.5", "generator.vqgan.steps", "integer"),
        ('generator.vqgan.steps="5"', "generator.vqgan.steps", "integer"),
        ("seed=true", "seed", "integer"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("classes=[dog, dog]", "classes", "once"),
        ("classes=[dog]", "classes", "2 or more"),
        ("classes=[dog, '']", "classes", "empty"),
        ("classes=[dog, ' cat']", "classes", "outer spaces"),
        ("classes=[dog, '{style}']", "classes", "without '/', '{', '}'"),
        ("classes=[dog, a/b]", "classes", "'/'"),
        ('classes=[dog, "a\\tb"]', "classes", "is printable"),
        ("classes=[dog, true]", "classes.1", "must be text"),
        ("name=two words", "name", "pattern"),
        ("cache=s3://bucket/weights", "cache", "folder of this machine"),
        ("cache=az://container/weights", "cache", "folder of this machine"),
        ("prompts.method=poetry", "prompts.method", "vanilla"),
        ("prompts.method=[mix, mix]", "prompts.method", "once"),
        ("prompts.method=[]", "prompts.method", "1 or more"),
        ("prompts={method: mix, styles: [one]}", "prompts.styles", "two styles"),
        ("prompts.styles=[red, red]", "prompts.styles", "once"),
        ("prompts.template='in the style of {style}'", "prompts.template", "{class}"),
        ("prompts.template='a {class}'", "prompts.template", "{style} exactly once"),
        ("teacher.template=a picture", "teacher.template", "{class}"),
        ("teacher.template='{class}, {class}'", "teacher.template", "{class} exactly once"),
        ("teacher.template='{class} in {style}'", "teacher.template", "no braces except {class}"),
        ("generator.kind=flux", "generator.kind", "one of diffusers, vqgan"),
        ("generator.kind=3", "generator.kind", "must be text"),
        ("generator={kind: vqgan}", "generator.vqgan.config", "is required"),
        ("generator={vqgan: {config: a, weights: b}}", "generator.kind", "is required"),
        ("generator.vqgan=3", "generator.vqgan", "a mapping"),
        ("generator.vqgan.wights=a", "generator.vqgan.wights", "not a key of generator.vqgan"),
        ("generator.kinds={}", "generator.kinds", "neither a key nor a kind"),
        (f"{SAMPLED}, guidance: 0.5}}}}", "generator.diffusers.guidance", "0, or greater than"),
        (f"{SAMPLED}, guidance: -1}}}}", "generator.diffusers.guidance", "or equal to 0"),
        ("synthesis.source=poetry", "synthesis.source", "latents"),
        ("synthesis.source=[]", "synthesis.source", "1 or more"),
        ("prompts.method=[3]", "prompts.method.0", "must be text"),
        ("synthesis.source=[cmi, cmi]", "synthesis.source", "once"),
        ("synthesis={batch_size: 0, source: bn}", "synthesis.batch_size", "given"),
        ("synthesis={batch_size: 0, source: [latents, bn]}", "synthesis.batch_size", "given"),
        ("synthesis.bn.weight=-1", "synthesis.bn.weight", "greater than 0"),
        ("synthesis.bn.weight=true", "synthesis.bn.weight", "number"),
        ("synthesis.dfad.batch_size=1", "synthesis.dfad.batch_size", "or equal to 2"),
        ("distillation.weights=none", "distillation.warmup_epochs", "must be 0 with"),
        ("distillation.augmentation=[flip, flip]", "distillation.augmentation", "once"),
        (
            "distillation={target: embedding, standardise: [0, 2]}",
            "distillation.standardise",
            "target=embedding",
        ),
        ("distillation={workers: [1, 8], batch_size: 15}", "distillation.batch_size", "8 ranks"),
        ("distillation.workers=[2, 1]", "distillation.workers", "least, most"),
        ("distillation.workers=[1, 2, 3]", "distillation.workers", "at most 2"),
        ("distillation.workers=0", "distillation.workers", "or equal to 1"),
        ("distillation.seeds=[1, 1]", "distillation.seeds", "once"),
        ("distillation.seeds=[1, -1]", "distillation.seeds.1", "or equal to 0"),
        ("distillation.standardise=[1, 0]", "distillation.standardise.1", "greater than 0"),
        ("distillation.learning_rate=.inf", "distillation.learning_rate", "a finite number"),
        ("regeneration.classes=[dog, dog]", "regeneration.classes", "once"),
        ("regeneration.classes=[horse]", "regeneration.classes", "must be among classes"),
        ("distillation.seeds=true", "distillation.seeds", "integer"),
        (f"distillation.seeds={1 << 32}", "distillation.seeds", "less than 4294967296"),
        ("distillation.student=[]", "distillation.student", "1 or more"),
        ("distillation.student=[resnet18, resnet18]", "distillation.student", "once"),
        ("distillation.weights=[none, none]", "distillation.weights", "one for all"),
        ("candidates.towers=[teacher, teacher]", "candidates.towers", "once"),
        ("candidates.towers=[{model: RN50}]", "candidates.towers.0.weights", "is required"),
        ("candidates.classifiers=[]", "candidates.classifiers", "1 or more"),
        ("evaluation.models=[teacher, teacher]", "evaluation.models", "once"),
        ("evaluation.models=[]", "evaluation.models", "must name a model"),
        ("evaluation.average=pixels", "evaluation.average", "images"),
        ("evaluation.domains=[ink, ink]", "evaluation.domains", "once"),
        ("evaluation.domains={ink: 1}", "evaluation.domains", "must be a list"),
        ("evaluation.aliases={plane: aeroplane}", "evaluation.aliases", "have none but classes"),
        ("evaluation.aliases={dog: x, cat: x}", "evaluation.aliases", "once"),
        ("evaluation.aliases={dog: 1}", "evaluation.aliases.dog", "must be text"),
        ("evaluation.aliases={dog: ''}", "evaluation.aliases.dog", "1 character"),
        ("evaluation.models=critic", "evaluation.models", "teacher"),
        ("storage=here", "storage", "object"),
        ("prompts={method: mix, method: random}", "method", "given twice"),
        ("generator.vqgan.steps", "--set", "key.sub=value"),
        ("name.first=a", "--set name.first", "holds a value"),
        ("seed=[", "--set seed", "valid YAML"),
    ],
)
def test_a_broken_rule_is_one_line(path: Path, override: str, field: str, rule: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.read(path, (override,))
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert rule in message
    assert ", got " in message
    assert "; " in message
    assert "\n" not in message


def test_an_ensemble_of_texts_needs_a_style(path: Path) -> None:
    overrides = "distillation.texts=styles", "prompts.styles=[]"
    with pytest.raises(
        ManifestError, match=r"^prompts.styles: must have a style with .*, got \(\)"
    ):
        Manifest.read(path, overrides)
    assert Manifest.read(path, (*overrides, "prompts.styles=[one]")).prompts.styles == ("one",)
    assert Manifest.read(path, overrides[1:]).prompts.styles == ()


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ("augmentation: []", True),
        ("augmentation: [flip]", False),  # the labels of another view
        ("augmentation: [], texts: styles", False),  # shards hold distances to the class prompts
        ("augmentation: [], texts: styles, target: embedding", True),  # which belongs to no text
    ],
)
def test_the_shards_hold_the_labels_of_plain_images(
    path: Path, settings: str, stored: bool
) -> None:
    assert (
        Manifest.read(path, (f"distillation={{{settings}}}",)).distillation.stored_labels == stored
    )


def test_weights_with_a_suffix_are_a_file_of_the_current_folder(path: Path) -> None:
    manifest = Manifest.read(path, ("distillation.weights=mine.safetensors",))
    assert weights_file(manifest.distillation.initial_weights) == Path("mine.safetensors")
    assert weights_file("IMAGENET1K_V1") is None


def test_without_labelled_images_no_model_is_scored(path: Path) -> None:
    assert Manifest.read(path).evaluation.scored == ("teacher", "student")
    assert Manifest.read(path, ("evaluation.data=none",)).evaluation.scored == ()


def test_other_classes_take_along_what_is_said_of_themselves_alone(path: Path) -> None:
    settings = (
        "evaluation={data: here, aliases: {dog: hound, cat: puss}}",
        "regeneration.classes=[cat]",
        "classes=[{name: dog, prompt: a pet}, {name: cat, prompt: a tom}]",
    )
    manifest = Manifest.read(path, settings)
    other = manifest.with_classes(("horse", "dog"))
    assert other.classes == ("horse", "dog")
    assert other.meanings == ("horse", "a pet")
    assert (other.evaluation.data, other.evaluation.aliases) == ("here", {"dog": "hound"})
    assert other.regeneration.classes == ()
    with pytest.raises(ManifestError, match=r"^classes: must be two or more, got \('dog',\)"):
        manifest.with_classes(("dog",))


@pytest.mark.parametrize("key", ["views=1", "view_noise=1", "compile=true"])
def test_a_key_of_the_optimisation_is_refused_where_latents_are_only_sampled(
    path: Path, key: str
) -> None:
    with pytest.raises(ManifestError, match=r"has no effect with generator\.kind .*; remove it"):
        Manifest.read(path, (f"{SAMPLED}}}}}", f"synthesis.{key}"))
    refined = Manifest.read(path, (f"{SAMPLED}, refine_steps: 3}}}}", f"synthesis.{key}"))
    assert refined.generator.settings.optimisation_steps == 4


def test_a_rate_of_no_refinement_is_refused(path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^generator\.diffusers\.refine_rate: has no effect"):
        Manifest.read(path, (f"{SAMPLED}, refine_rate: 0.1}}}}",))
    Manifest.read(path, (f"{SAMPLED}, refine_rate: 0.1, refine_steps: 3}}}}",))


@pytest.mark.parametrize(
    ("weights", "steps", "guidance"),
    [("miniature", 8, 3.0), ("stable-diffusion-v1-5", 20, 2.0), ("sd-turbo", 1, 1.0)],
)
def test_a_known_diffusion_model_has_its_own_steps_and_guidance(
    path: Path, weights: str, steps: int, guidance: float
) -> None:
    def settings(*overrides: str) -> Diffusers:
        named = f"generator={{kind: diffusers, diffusers: {{weights: {weights}}}}}"
        found = Manifest.read(path, (named, *overrides)).generator.settings
        assert isinstance(found, Diffusers)
        return found

    assert (settings().sampling_steps, settings().guidance) == (steps, guidance)
    assert settings("generator.diffusers.guidance=0").guidance == 1.0
    other = settings("generator.diffusers.guidance=7.5", "generator.diffusers.steps=3")
    assert (other.sampling_steps, other.guidance) == (3, 7.5)


@pytest.mark.parametrize(
    ("scheduler", "usual"),
    [
        ({"_class_name": "LCMScheduler"}, "LCMScheduler usually takes 4 to 8 steps"),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            "EulerDiscreteScheduler with trailing time steps, as of a Turbo model, takes 1 to 4",
        ),
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler usually takes 20 to 50 steps"),
        ({}, "most models take 20 to 50 steps"),
        ([], "most models take 20 to 50 steps"),
        (None, "most models take 20 to 50 steps"),
    ],
)
def test_a_folder_needs_steps_and_guidance_and_the_error_names_usual_ones(
    path: Path, tmp_path: Path, scheduler: object, usual: str
) -> None:
    file = tmp_path / SCHEDULER
    file.parent.mkdir()
    if scheduler is not None:
        file.write_text(json.dumps(scheduler))
    folder = f"generator={{kind: diffusers, diffusers: {{weights: {tmp_path}}}}}"
    given = {
        "generator.diffusers.steps": "generator.diffusers.steps=4",
        "generator.diffusers.guidance": "generator.diffusers.guidance=2",
    }
    for missing in given:
        others = (setting for key, setting in given.items() if key != missing)
        with pytest.raises(ManifestError) as caught:
            Manifest.read(path, (folder, *others))
        assert str(caught.value).startswith(f"{missing}: must be given unless weights is")
        assert f"; give it; {usual}" in str(caught.value)
    assert Manifest.read(path, (folder, *given.values())).generator.settings.sampling_steps == 4


def test_methods_are_prompts_with_and_without_statistics_and_inversions(path: Path) -> None:
    assert Manifest.read(path).methods == ("contrastive",)
    manifest = Manifest.read(
        path,
        (
            "prompts.method=[mix, contrastive]",
            "synthesis.source=[dfad, bn, latents, deepinversion]",
            "synthesis.bn.weight=0.5",
        ),
    )
    latent = ("mix-bn", "contrastive-bn", "mix", "contrastive")
    assert manifest.methods == ("dfad", *latent, "deepinversion")
    for method in manifest.methods:
        chosen = manifest.with_method(method)
        assert chosen.methods == (chosen.method,) == (method,)
        assert chosen.with_method(method) == chosen
    assert manifest.with_method("mix-bn").source == BatchNorm(weight=0.5)
    assert manifest.with_method("mix").source == Latents()
    assert manifest.with_method("dfad").prompts.method == ("vanilla",)
    plain = Manifest.read(
        path,
        ("synthesis.source=bn",),
    )
    assert plain.methods == ("contrastive-bn",)


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("~/runs/mine", "/home/me/runs/mine"),
        ("runs/mine~", "runs/mine~"),
        ("s3://bucket/run", "s3://bucket/run"),
        ("az://container", "az://container"),
        ("gs://bucket/run", "gs://bucket/run"),
    ],
)
def test_a_tilde_in_the_root_is_the_home_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch, root: str, found: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    manifest = Manifest.read(path, (f"storage.root={root}",))
    assert manifest.storage.root == found
    assert manifest.with_method(manifest.method).storage == manifest.storage


def test_a_single_value_may_stand_for_a_list_of_one(path: Path) -> None:
    alone = ("distillation.seeds=3", "evaluation.domains=ink", "prompts.method=mix")
    manifest = Manifest.read(path, (*alone, "prompts.styles=[red, blue]"))
    assert (manifest.prompts.method, manifest.prompts.styles) == (("mix",), ("red", "blue"))
    assert manifest.distillation.seeds == (3,)
    assert manifest.evaluation.domains == ("ink",)


def test_numbers_and_words_are_as_people_write_them(path: Path) -> None:
    words = ["no", "on", "yes", "off", "1e-3", "1:30", "null"]
    settings = ("distillation.learning_rate=1e-3", "classes=[no, on, 'yes', off, '1e-3', 1:30]")
    manifest = Manifest.read(path, settings)
    assert manifest.distillation.learning_rate == 0.001
    assert manifest.classes == ("no", "on", "yes", "off", "1e-3", "1:30")
    assert read_manifest(path, classes=words).classes == tuple(words)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"- a\n- b\n", "mapping"),
        (b"name: small\nclasses: [dog, cat]\n", "storage: is required"),
        (b"name: [", "valid YAML"),
        (b"\xff\xfe", "UTF-8"),
        (b"name: &a [*a]\n", "no aliases"),
        (b"a: &a [x]\nb: [*a, *a]\n", "no aliases.*line 2"),
        (b"name: " + b"[" * 5000, "valid YAML"),
        (b"? [a]\n: b\n", "valid YAML"),
        (b"name: !!timestamp 2024-01-01\n", "name: must be text"),
        (b"a: " + b"x" * (1 << 20), "bytes"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ManifestError, match=rule):
        Manifest.read(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="existing file"):
        Manifest.read(tmp_path / "none.yaml")


def test_the_printed_manifest_reads_back_as_the_same(path: Path, tmp_path: Path) -> None:
    settings = (
        "prompts.method=[mix, vanilla]",
        "evaluation.aliases.dog=hound",
        "classes=[dog, no, '1e-3', 1_0, {name: crane, prompt: 'crane, a bird'}]",
        "distillation.learning_rate=1e-7",
    )
    manifest = Manifest.read(path, settings)
    assert manifest.classes[-2:] == ("1_0", "crane")
    assert manifest.meanings[-2:] == ("1_0", "crane, a bird")
    assert manifest.evaluation.aliases == {"dog": "hound"}
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(manifest.as_dict()))
    assert Manifest.read(copy) == manifest


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        ("{name: crane}", "classes.1", "{'name': 'crane'}"),
        ("{name: crane, text: a bird}", "classes.1", "'text': 'a bird'"),
        ("{name: crane, prompt: 5}", "classes.1", "'prompt': 5"),
        ("{name: crane, prompt: ''}", "classes.crane.prompt", "''"),
        ("{name: crane, prompt: 'a {style}'}", "classes.crane.prompt", "'a {style}'"),
        ("{name: a/b, prompt: a bird}", "classes", "'a/b'"),
        ("{name: dog, prompt: a bird}", "classes", "'dog'"),
    ],
)
def test_a_class_with_a_wrong_meaning_is_refused(
    path: Path, entry: str, field: str, value: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.read(path, (f"classes=[dog, {entry}]",))
    assert caught.value.field == field
    assert value in str(caught.value)


def test_meanings_are_written_beside_the_names_alone(path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^given_meanings: is not a key of the manifest"):
        Manifest.read(path, ("given_meanings={dog: a pet}",))


def test_models_that_differ_in_their_template_alone_are_all_there(path: Path) -> None:
    """Of labellers and of towers."""
    templates = ("a {class}", "photo of a {class}", "drawing of a {class}")
    other = [{"model": "RN50", "weights": "openai", "template": each} for each in templates]
    overrides = f"distillation.labeller={json.dumps(other)}", "evaluation.models=teacher"
    manifest = Manifest.read(path, overrides)
    assert [each.template for each in manifest.labellers.values()] == [*templates]
    assert [each.template for each in manifest.towers.values()] == [*templates]
