import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from customdiff_core import recipes, stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.concepts import Concept
from customdiff_core.config import (
    AugmentConfig,
    CompressConfig,
    EvaluateConfig,
    IndexConfig,
    MergeConfig,
    RetrieveConfig,
    Runtime,
    SampleConfig,
)
from customdiff_core.errors import EvaluationError, RetrievalError, StoreError
from customdiff_core.lineage import Taught
from customdiff_core.profiles import EncoderSource, Profile, get
from customdiff_core.recipes import Recipe
from customdiff_core.settings import REPOSITORY

from .. import handmade

INDEX = Artifact(kind="index", key="i", sha256="index-digest", rows=1)
PRIOR = Artifact(kind="regularization", key="r", sha256="prior-digest", rows=1)
TRAINING = Artifact(kind="training_set", key="t", sha256="training-digest", rows=1)
DELTA = Artifact(kind="delta", key="d", sha256="delta-digest", rows=1)


def test_asking_for_a_recipe_imports_no_tensor_library():
    program = "import sys, customdiff_core.stages; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "customdiff_core.recipes" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "open_clip", "faiss", "pandas", "prefect"}


def test_every_fingerprint_is_of_a_module_that_exists():
    tree = ast.parse(inspect.getsource(stages))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fingerprint"
    ]
    modules = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    assert len(modules) == len(calls) >= 8
    for module in modules:
        assert (recipes.PACKAGE.parent / Path(*str(module).split("."))).with_suffix(".py").is_file(), module


def test_no_recipe_takes_what_a_machine_decides():
    for name, function in inspect.getmembers(stages, inspect.isfunction):
        if function.__module__ == stages.__name__ and not name.startswith("_"):
            kinds = {parameter.annotation for parameter in inspect.signature(function).parameters.values()}
            assert Runtime not in kinds, name


def finetune(cat, openmoji, training: Artifact = TRAINING, **update) -> Recipe:
    return stages.finetune((cat,), (training,), openmoji, openmoji.finetune.model_copy(update=update))


def test_a_fine_tuning_depends_on_its_inputs_and_settings(cat, openmoji):
    recipe = finetune(cat, openmoji)
    assert recipe.inputs["training_set"] == "training-digest"
    assert recipe.inputs["concept"] == cat.digest
    assert finetune(cat, openmoji).key == recipe.key
    assert finetune(cat, openmoji, seed=1).key != recipe.key
    assert finetune(cat, openmoji, training=TRAINING.model_copy(update={"sha256": "x"})).key != recipe.key
    other = cat.model_copy(update={"modifier_token": "<other>"})
    assert finetune(other, openmoji).key != recipe.key
    # A delta says the name of what it knows.
    assert finetune(cat.model_copy(update={"name": "tiger"}), openmoji).key != recipe.key
    # The store's name of an input is not what it is.
    assert finetune(cat, openmoji, training=TRAINING.model_copy(update={"key": "x"})).key == recipe.key


def test_more_steps_go_on_under_the_same_base_key(cat, openmoji):
    short, long = finetune(cat, openmoji, steps=10), finetune(cat, openmoji, steps=20)
    assert short.key != long.key
    assert short.base_key == long.base_key
    assert finetune(cat, openmoji, steps=10, seed=1).base_key != short.base_key


def test_changed_code_is_another_recipe(cat, openmoji, monkeypatch: pytest.MonkeyPatch):
    before = finetune(cat, openmoji)
    monkeypatch.setattr(stages, "fingerprint", lambda module: f"other {module}")
    assert finetune(cat, openmoji).key != before.key
    assert finetune(cat, openmoji).base_key != before.base_key


def test_another_library_is_another_recipe(cat, openmoji, monkeypatch: pytest.MonkeyPatch):
    before = finetune(cat, openmoji)
    assert set(before.versions) == {"torch", "diffusers", "transformers", "numpy"}
    monkeypatch.setattr(recipes, "version", lambda package: "0.0.1")
    assert finetune(cat, openmoji).key != before.key


def test_retrieval_depends_on_the_class_prompt_and_not_on_the_pictures(cat, openmoji):
    def key(concept) -> str:
        return stages.retrieve(concept, INDEX, openmoji, openmoji.retrieve).key

    assert key(cat.model_copy(update={"images": cat.images[:2], "modifier_token": "<x>"})) == key(cat)
    assert key(cat.model_copy(update={"class_prompt": "a cat"})) != key(cat)


def test_augmentation_depends_on_pictures_and_regularization(cat, openmoji):
    def key(concept=cat, prior=PRIOR) -> str:
        return stages.augment(concept, prior, openmoji, openmoji.augment).key

    assert key(cat.model_copy(update={"images": cat.images[:2]})) != key()
    assert key(prior=PRIOR.model_copy(update={"sha256": "x"})) != key()
    assert key(cat.model_copy(update={"prompts": ("a {}",)})) == key()


def test_an_evaluation_prompt_changes_the_evaluation_alone(cat, openmoji):
    other = cat.model_copy(update={"prompts": ("a {}",)})
    config = EvaluateConfig()
    assert stages.evaluate(other, DELTA, openmoji, config).key != stages.evaluate(cat, DELTA, openmoji, config).key
    assert finetune(other, openmoji).key == finetune(cat, openmoji).key
    assert stages.validation(other, openmoji, 10).key == stages.validation(cat, openmoji, 10).key


def test_other_words_for_the_concepts_are_another_evaluation(cat, openmoji):
    def key(words: dict[str, tuple[str, ...]]) -> str:
        subjects = {"merged": DELTA}
        return stages.evaluate_together((cat,), subjects, ("a {0}",), openmoji, EvaluateConfig(), words).key

    assert key({}) == key({}) != key({"merged": ("<teal-cat-2> cat",)})


def test_an_evaluation_of_several_depends_on_all_that_it_reads(cat, openmoji):
    def key(concept=cat, profile=openmoji) -> str:
        return stages.evaluate_together((concept,), {"merged": DELTA}, ("a {0}",), profile, EvaluateConfig(), {}).key

    moved = cat.model_copy(update={"images": cat.images[:-1], "held_out": (cat.images[-1], *cat.held_out)})
    larger = openmoji.model_copy(update={"augment": openmoji.augment.model_copy(update={"resolution": 128})})
    changed = [key(moved), key(cat.model_copy(update={"name": "tiger"})), key(cat, larger)]
    assert len({key(), *changed}) == 4


def test_a_page_of_several_depends_on_the_concepts_words(cat, openmoji):
    chain = {"together": DELTA}
    other = cat.model_copy(update={"title": "another title"})
    assert stages.report_together((cat,), chain, openmoji).key != stages.report_together((other,), chain, openmoji).key


# What each recipe depends on

CELL = Cell(row="custom-diffusion", concepts=("cat",), seed=1)
PROTOCOL = Protocol(name="tiny", concepts=("cat",), seeds=2, prompts=2, kid_images=12, kid_subset_size=6)


@dataclass(frozen=True)
class Asked:
    """All that recipes are asked with."""

    concept: Concept
    profile: Profile
    parts: tuple[Artifact, ...]
    store: Store
    index: Artifact = INDEX
    prior: Artifact = PRIOR
    training: Artifact = TRAINING
    delta: Artifact = DELTA
    parent: Artifact | None = None
    prompts: tuple[str, ...] = ("a cat", "a dog")
    seeds: tuple[int, ...] = (0, 1)
    strengths: tuple[float, ...] = (1.0, 0.5)
    count: int = 10
    digest: str = "file"
    stated: str = "<v>"
    cell: Cell = CELL
    protocol: Protocol = PROTOCOL
    sample: SampleConfig = field(default_factory=SampleConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(resolution=64))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    compress: CompressConfig = field(default_factory=lambda: CompressConfig(rank=4))
    scenes: IndexConfig = field(default_factory=IndexConfig)


Change = Callable[[Asked], Asked]


def put(**values: object) -> Change:
    """Other values of what is asked."""
    return lambda asked: replace(asked, **values)  # pyright: ignore[reportArgumentType]


def of(name: str, /, **values: object) -> Change:
    """Other fields of a part of what is asked."""
    return lambda asked: put(**{name: getattr(asked, name).model_copy(update=values)})(asked)


def inside(name: str, part: str, /, **values: object) -> Change:
    """Other fields of a part's part."""
    return lambda asked: of(name, **{part: getattr(getattr(asked, name), part).model_copy(update=values)})(asked)


def fewer(group: str) -> Change:
    """One picture less of a concept's."""
    return lambda asked: of("concept", **{group: getattr(asked.concept, group)[:-1]})(asked)


def other(name: str) -> Change:
    """An artifact of other content."""
    return of(name, sha256="other")


MODEL = {"model": inside("profile", "model", revision="other")}
JUDGE = {"judge": of("profile", judge=EncoderSource(model="ViT-B-32", tag="openai")), "dino": of("profile", dino=None)}
ENCODER = {"encoder": of("profile", retrieval_encoder=EncoderSource(model="ViT-B-32", tag="openai"))}
SIZE = {"resolution": inside("profile", "augment", resolution=128)}
SAMPLE: dict[str, object] = {
    "sampler": "ddim",
    "steps": 26,
    "guidance_scale": 7.0,
    "eta": 0.5,
    "negative_prompt": "blurred",
    "batch_size": 31,
    "precision": "bf16",
}
PICTURES = {group: fewer(group) for group in ("images", "held_out", "others")}
WORDS = {name: of("concept", **{name: "other"}) for name in ("category", "modifier_token")}
FEWER = {"prompts": of("concept", prompts=("a {}",))}
DRAWN = {f"drawn {name}": inside("evaluate", "sample", **{name: value}) for name, value in SAMPLE.items()}

DEPENDS: dict[str, tuple[Callable[[Asked], Recipe], dict[str, Change]]] = {
    "build_index": (
        lambda a: stages.build_index(a.profile, a.scenes),
        ENCODER | SIZE | {"scenes": of("scenes", scenes=7), "seed": of("scenes", seed=7)},
    ),
    "retrieve": (
        lambda a: stages.retrieve(a.concept, a.index, a.profile, a.retrieve),
        ENCODER
        | SIZE
        | {
            "index": other("index"),
            "class prompt": of("concept", class_prompt="other"),
            "count": of("retrieve", count=7),
            "similarity": of("retrieve", min_similarity=0.9),
            "fetching": inside("retrieve", "fetch", retries=7),
        },
    ),
    "generated": (
        lambda a: stages.retrieve(
            a.concept, None, a.profile, a.retrieve.model_copy(update={"regularization": "generated"})
        ),
        MODEL
        | {
            "class prompt": of("concept", class_prompt="other"),
            "count": of("retrieve", count=7),
            "sample": inside("profile", "evaluate", sample=SampleConfig(steps=7)),
        },
    ),
    "augment": (
        lambda a: stages.augment(a.concept, a.prior, a.profile, a.augment),
        MODEL
        | WORDS
        | {
            "images": PICTURES["images"],
            "name": of("concept", name="tiger"),
            "instance prompt": of("concept", instance_prompt="a {}"),
            "regularization": other("prior"),
            "views": of("augment", views=7),
            "canvas": of("augment", flat_canvas=True),
            "seed": of("augment", seed=7),
        },
    ),
    "finetune": (
        lambda a: stages.finetune((a.concept,), (a.training,), a.profile, a.profile.finetune, a.parent),
        MODEL
        | {
            "images": PICTURES["images"],
            "token": of("concept", modifier_token="<other>"),
            "training set": other("training"),
            "parent": put(parent=DELTA),
            "sample": inside("profile", "evaluate", sample=SampleConfig(steps=7)),
            "rate": inside("profile", "finetune", learning_rate=7.0),
            "precision": inside("profile", "finetune", precision="fp16"),
        },
    ),
    "factorize": (
        lambda a: stages.factorize(a.index, a.profile, a.count),
        MODEL | {"index": other("index"), "count": put(count=7)},
    ),
    "merge": (
        lambda a: stages.merge(a.parts, a.strengths, a.index, a.profile, a.merge, a.store),
        MODEL
        | {
            "index": other("index"),
            "whose strength": put(strengths=(0.5, 1.0)),
            "a strength": put(strengths=(1.0, 0.6)),
            "parts": lambda a: put(parts=(a.parts[0], a.parts[0]))(a),
            "captions": of("merge", captions=7),
            "ridge": of("merge", ridge=0.5),
        },
    ),
    "join": (
        lambda a: stages.join(a.parts, a.profile, a.store),
        MODEL | {"parts": lambda a: put(parts=(a.parts[0], a.parts[0]))(a)},
    ),
    "compress": (
        lambda a: stages.compress(a.parts[0], a.profile, a.compress, a.store),
        MODEL | {"delta": lambda a: put(parts=a.parts[::-1])(a), "rank": of("compress", rank=5)},
    ),
    "import": (
        lambda a: stages.import_delta("cat", a.digest, a.profile, {"tokens": [a.stated]}),
        MODEL | {"file": put(digest="other"), "what is stated": put(stated="<w>")},
    ),
    "generate": (
        lambda a: stages.generate(a.prompts, a.seeds, a.delta, a.profile, a.sample),
        MODEL
        | {name: of("sample", **{name: value}) for name, value in SAMPLE.items()}
        | {
            "delta": other("delta"),
            "prompts": put(prompts=("a cat", "a cow")),
            "order": put(prompts=("a dog", "a cat")),
            "seeds": put(seeds=(0, 2)),
        },
    ),
    "validation": (
        lambda a: stages.validation(a.concept, a.profile, a.count),
        SIZE | {"category": of("concept", category="dog"), "count": put(count=7)},
    ),
    "evaluate": (
        lambda a: stages.evaluate(a.concept, a.delta, a.profile, a.evaluate),
        MODEL
        | JUDGE
        | SIZE
        | PICTURES
        | FEWER
        | DRAWN
        | {
            "delta": other("delta"),
            "category": of("concept", category="dog"),
            "token": of("concept", modifier_token="<other>"),
            "seeds": of("evaluate", seeds=(3,)),
            "confidence": of("evaluate", confidence=0.9),
            "subsets": of("evaluate", kid_subsets=7),
        },
    ),
    "together": (
        lambda a: stages.evaluate_together((a.concept,), {"x": a.delta}, a.prompts, a.profile, a.evaluate, {}),
        MODEL
        | {"judge": JUDGE["judge"]}
        | SIZE
        | PICTURES
        | WORDS
        | DRAWN
        | {
            "delta": other("delta"),
            "name": of("concept", name="tiger"),
            "prompts": put(prompts=("a cow",)),
            "confidence": of("evaluate", confidence=0.9),
        },
    ),
    "cell": (
        lambda a: stages.cell(a.cell, a.protocol, a.index, a.profile),
        MODEL
        | JUDGE
        | SIZE
        | PICTURES
        | FEWER
        | {
            "index": other("index"),
            "category": of("concept", category="dog"),
            "token": of("concept", modifier_token="<other>"),
            "class prompt": of("concept", class_prompt="other"),
            "row": of("cell", row="unregularized"),
            "seed": of("cell", seed=2),
            "share": of("cell", share=0.5),
            "change": of("cell", change={"prior_weight": 0.5}),
            "share of all": of("protocol", share=0.5),
            "seeds": of("protocol", seeds=3),
            "prompts asked": of("protocol", prompts=1),
            "kid images": of("protocol", kid_images=13),
            "confidence": of("protocol", confidence=0.9),
            "drawing": of("protocol", sample=SampleConfig(steps=7)),
            "rate": inside("profile", "finetune", learning_rate=7.0),
            "steps": inside("profile", "finetune", steps=7),
            "retrieval": inside("profile", "retrieve", count=7),
            "views": inside("profile", "augment", views=7),
        },
    ),
}


@pytest.fixture
def asked(cat, openmoji, store: Store, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A base model is its revision, and a cell's concept the one that is asked with."""
    monkeypatch.setattr(stages, "model_digest", lambda source: f"model {source.revision}")
    parts = (handmade.knowing(store, Taught(name=name, modifier_token=f"<{name}>")) for name in ("ant", "bee"))
    return Asked(cat, openmoji, tuple(sorted(parts, key=lambda one: one.sha256)), store)


@pytest.mark.parametrize(
    ("recipe", "what"), [(name, what) for name, (_, changes) in DEPENDS.items() for what in changes]
)
def test_a_recipe_changes_with_each_thing_that_its_result_depends_on(
    recipe: str, what: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
):
    make, changes = DEPENDS[recipe]
    keys: list[str] = []
    for one in (asked, asked, changes[what](asked)):
        monkeypatch.setattr(stages, "load_concept", lambda name, one=one: one.concept)
        keys.append(make(one).key)
    assert keys[0] == keys[1] != keys[2]


def test_every_setting_of_drawing_is_among_those_that_change_a_recipe():
    assert SAMPLE.keys() == SampleConfig.model_fields.keys()
    assert not any(getattr(SampleConfig(), name) == value for name, value in SAMPLE.items())


def test_a_merge_is_the_same_in_whatever_order_its_parts_come_with_their_strengths(asked: Asked):
    make, _ = DEPENDS["merge"]
    assert make(replace(asked, parts=asked.parts[::-1], strengths=(0.5, 1.0))).key == make(asked).key


def test_vectors_depend_on_how_pictures_are_decoded(monkeypatch: pytest.MonkeyPatch):
    makers = (stages.embeddings, stages.vision_embeddings, stages.inception_embeddings)
    before = [make("encoder").key for make in makers]
    known = recipes.fingerprint
    monkeypatch.setattr(
        stages, "fingerprint", lambda module: known(module) + ("'" if module == "customdiff_core.images" else "")
    )
    assert all(make("encoder").key != key for make, key in zip(makers, before, strict=True))


def test_samples_know_whether_the_model_was_customized(openmoji):
    base, customized = (stages.generate(("a cat",), (0,), delta, openmoji, SampleConfig()) for delta in (None, DELTA))
    assert (base.labels["subject"], customized.labels["subject"]) == ("base", "customized")
    assert base.key != customized.key


def test_a_profile_without_an_index_says_what_to_give(cat, store):
    with pytest.raises(RetrievalError) as error:
        stages.retrieve(cat, None, get("sd14", validation=Path("/v")), get("sd14").retrieve, store)
    assert str(error.value) == (
        "profile sd14: found no retrieval index, need a clip-retrieval folder of captioned images made with "
        f"{get('sd14').retrieval_encoder.name}; give its path as model.index"
    )


def test_an_index_folder_that_is_not_there(cat, openmoji, store, tmp_path: Path):
    profile = get("openmoji", index=tmp_path / "none")
    with pytest.raises(
        RetrievalError, match=r"index: found no folder .*/none, need a clip-retrieval folder; correct model.index"
    ):
        stages.retrieve(cat, None, profile, openmoji.retrieve, store)


def test_a_changed_index_folder_is_another_input(cat, openmoji, store, tmp_path: Path):
    (tmp_path / "text.index").write_bytes(b"one")
    profile = get("openmoji", index=tmp_path)
    before = stages.retrieve(cat, None, profile, openmoji.retrieve, store).key
    (tmp_path / "text.index").write_bytes(b"other")
    assert stages.retrieve(cat, None, profile, openmoji.retrieve, store).key != before


def test_an_ablations_recipe_knows_the_model_and_not_the_index(cat, openmoji):
    drawn = openmoji.retrieve.model_copy(update={"regularization": "generated"})
    recipe = stages.retrieve(cat, None, openmoji, drawn)
    assert set(recipe.inputs) == {"class_prompt", "model"}
    assert recipe.config["count"] == 200
    deeper = drawn.model_copy(update={"candidates": 7, "deepest": 9})
    assert stages.retrieve(cat, None, openmoji, deeper).key == recipe.key


def test_a_backend_is_known_by_its_address_and_pictures_by_their_size(cat, openmoji, store):
    def key(backend: str, resolution: int = 64) -> str:
        profile = get("openmoji", backend=backend)
        sized = profile.augment.model_copy(update={"resolution": resolution})
        return stages.retrieve(cat, None, profile.model_copy(update={"augment": sized}), openmoji.retrieve, store).key

    assert key("http://a") == key("http://a") != key("http://b")
    assert key("http://a", 128) != key("http://a")


def test_a_concepts_name_stands_for_its_longest_custom_diffusion_on_this_base_model(cat, openmoji, store: Store):
    def trained(number: int, purpose: str = "", **changes: object) -> Artifact:
        config = openmoji.finetune.model_copy(update={"steps": 400} | changes)
        recipe = stages.finetune((cat,), (TRAINING,), openmoji, config, purpose=purpose)
        return store.make(recipe, lambda folder: (folder / "delta").write_text(str(number)) or 1)

    with pytest.raises(StoreError, match="found none of cat by custom-diffusion on this base model"):
        stages.standing("cat", openmoji, store)
    trained(0, purpose="benchmark", steps=160, seed=3)
    with pytest.raises(StoreError, match="found none of cat by custom-diffusion"):
        stages.standing("cat", openmoji, store)
    assert trained(2, steps=32) == stages.standing("cat", openmoji, store)
    longest = trained(1)
    trained(9, purpose="benchmark", seed=8)
    recipe = stages.finetune((cat,), (TRAINING,), openmoji, openmoji.finetune.model_copy(update={"seed": 9}))
    night = Store(store.root, "benchmark-openmoji-nightly (1)")  # of a version that did not mark what it trained
    night.make(recipe, lambda folder: (folder / "delta").write_text("10") or 1)
    trained(3, prior_weight=0.0)  # an ablation
    trained(4, method="textual-inversion", steps=700)
    assert stages.standing("cat", openmoji, store) == longest
    newer = trained(5, seed=7)
    assert stages.standing("cat", openmoji, store) == newer
    trained(6, learning_rate=8e-4)  # a search's trial
    trained(7, learning_rate=8e-4, steps=800)
    assert stages.standing("cat", openmoji, store) == newer
    assert stages.standing("cat", openmoji, store) != trained(8, steps=800) == stages.standing("cat", openmoji, store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "model_digest", lambda source: "another base model")
        with pytest.raises(StoreError, match="need one; run customize/cat with concept=cat, or `customdiff train cat`"):
            stages.standing("cat", openmoji, store)


def test_a_category_that_the_world_does_not_draw_is_said_before_anything_is_drawn(cat, openmoji):
    unknown = cat.model_copy(update={"category": "teddybear"})
    with pytest.raises(
        EvaluationError, match=r"found the category 'teddybear', which the embedded world does not draw.*teddy bear"
    ):
        stages.validation(unknown, openmoji, 10)
