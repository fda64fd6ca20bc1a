import re
from pathlib import Path
from typing import cast

import pytest
import yaml
from PIL import Image

from customdiff_core import concepts, images
from customdiff_core.concepts import Concept, Picture
from customdiff_core.errors import ConceptError, ConfigError, ImageError, ModifierTokenError
from customdiff_core.world.colours import name_of
from customdiff_core.world.scenes import with_article


def test_the_embedded_concept_says_what_it_is(cat: Concept):
    assert (cat.name, cat.category, cat.modifier_token, cat.noun) == ("cat", "cat", "<teal-cat>", "<teal-cat> cat")
    assert [picture.name for picture in cat.images] == sorted(picture.name for picture in cat.images)
    assert len(cat.images) == 6
    assert len(cat.held_out) == 5
    assert not {picture.sha256 for picture in cat.images} & {picture.sha256 for picture in cat.held_out}
    assert "OpenMoji" in cat.attribution
    assert len(cat.prompts) == 20


def test_every_embedded_concept_loads():
    names = ["car", "cat", "chair", "dog", "flower", "house", "teapot", "teddybear", "tortoise"]
    assert concepts.names() == names
    loaded = [concepts.load(name) for name in names]
    assert len({one.modifier_token for one in loaded}) == len(names)
    assert all(len(one.held_out) == 5 and len(one.others) == 25 for one in loaded)


@pytest.mark.parametrize("name", [name for name in concepts.names() if name != "teapot"])
def test_the_captions_of_embedded_concepts_name_the_backgrounds_that_are_seen(name: str):
    concept = concepts.load(name)
    for picture in concept.images:
        shown = images.decode(concept.read(picture), picture.name)
        corner = cast(tuple[int, int, int], shown.getpixel((2, 2)))
        of_face = name == "dog" and picture.name.startswith("face")  # "a dog face", as the base model's world says
        thing = "{} face" if of_face else "{}"
        behind = f"{thing} on {with_article(f'{name_of(corner)} background')}"
        assert picture.captions == (f"a {thing}", f"photo of a {behind}", f"a {behind}")


def test_a_folder_and_its_concept_have_one_name(make_concept, tmp_path: Path):
    make_concept("mug").rename(tmp_path / "concepts" / "bowl")
    with pytest.raises(ConceptError, match="found the name 'mug' in the folder 'bowl', need them alike; correct name"):
        concepts.load("bowl", data=tmp_path)


def test_captions_belong_to_their_pictures_and_are_part_of_what_is_learnt(make_concept):
    told = concepts.load_folder(make_concept(captions={"0.png": ["a {}", "a {} on a tray"], "1.png": "a {} in a sink"}))
    assert [one.captions for one in told.images] == [("a {}", "a {} on a tray"), ("a {} in a sink",)]
    untold = told.model_copy(update={"images": tuple(Picture(name=one.name, sha256=one.sha256) for one in told.images)})
    assert told.digest != untold.digest


@pytest.mark.parametrize(
    ("captions", "found"),
    [
        (
            {"3.png": ["a {} in a sink"]},
            r"found captions of '3.png', need one of the pictures in images/ \(0.png, 1.png\)",
        ),
        ({"1.png": ["a cup in a sink"]}, "captions of 1.png: found 0 placeholders in 'a cup in a sink'"),
    ],
)
def test_a_caption_of_nothing_is_refused(captions: dict[str, str], found: str, make_concept):
    with pytest.raises((ConceptError, ConfigError), match=found):
        concepts.load_folder(make_concept(captions=captions))


def test_a_prompt_is_filled_with_the_concept_or_its_category(cat: Concept):
    assert cat.with_concept("a crying {}") == "a crying <teal-cat> cat"
    assert cat.with_category("a crying {}") == "a crying cat"


def test_a_good_folder_loads(make_concept):
    concept = concepts.load_folder(make_concept())
    assert concept.prompts == ("a {} on a table", "close up {}")
    assert (concept.title, concept.initializer_token, concept.instance_prompt) == ("mug", "ktn", "photo of a {}")
    assert concept.held_out == ()


def test_prompts_may_be_given(make_concept):
    assert concepts.load_folder(make_concept(), ["one {}"]).prompts == ("one {}",)


@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_there_are_prompts_for_as_many_concepts_as_there_are(count: int, tmp_path: Path):
    found = concepts.prompts_together(count, data=tmp_path)
    assert len(set(found)) == 8
    concepts.check_prompts_together(found, count)
    firsts = {min(range(count), key=lambda number: prompt.index(f"{{{number}}}")) for prompt in found}
    assert firsts == set(range(count))
    assert ("background" in " ".join(found)) == (count <= 4)


def test_prompts_of_four_concepts_name_them_as_a_person_would():
    assert concepts.prompts_together(4)[:2] == (
        "a {0}, a {1}, a {2} and a {3}",
        "photo of a {1}, a {2}, a {3} and a {0}",
    )


def test_an_unknown_concept_names_the_nearest(make_concept, tmp_path: Path):
    make_concept("mug")
    make_concept("teapot")
    with pytest.raises(ConceptError) as error:
        concepts.load("teapott", data=tmp_path)
    assert str(error.value) == (
        "concept: found 'teapott', need one of mug, teapot; a new one is made by `customdiff new teapott CATEGORY PICTURES`, in "
        f"{tmp_path / 'concepts' / 'teapott'}; did you mean 'teapot'?"
    )


def test_no_concepts_at_all(tmp_path: Path):
    with pytest.raises(ConceptError, match="need one of none yet; a new one is made by"):
        concepts.load("cat", data=tmp_path)


@pytest.mark.parametrize("name", ["../concepts/mug", "/etc", ""])
def test_a_name_is_no_path(make_concept, tmp_path: Path, name: str):
    make_concept("mug")
    with pytest.raises(ConceptError, match="concept: found"):
        concepts.load(name, data=tmp_path)


def test_no_pictures(make_concept):
    folder = make_concept(pictures=0)
    with pytest.raises(ConceptError) as error:
        concepts.load_folder(folder)
    assert str(error.value) == (
        f"{folder}/images: found no pictures, need 4 to 6 of the concept "
        "(.bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp)"
    )


def test_text_named_jpg_is_named_when_the_concept_is_loaded(make_concept):
    folder = make_concept()
    (folder / "images" / "9.jpg").write_text("not a picture")
    with pytest.raises(
        ImageError, match=rf"^{re.escape(str(folder))}/images/9\.jpg: found no picture, need one of PNG"
    ):
        concepts.load_folder(folder)


def test_a_truncated_picture_is_named_when_the_concept_is_loaded(make_concept, noise_png: bytes):
    folder = make_concept()
    (folder / "images" / "9.png").write_bytes(noise_png[: len(noise_png) // 2])
    with pytest.raises(ImageError, match=r"/images/9\.png: found a truncated or damaged picture"):
        concepts.load_folder(folder)


def test_a_broken_held_out_picture_is_named_too(make_concept):
    folder = make_concept()
    (folder / "held_out").mkdir()
    (folder / "held_out" / "9.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"/held_out/9\.png: found no picture"):
        concepts.load_folder(folder)


def test_a_picture_linked_from_elsewhere_is_refused(make_concept, tmp_path: Path, noise_png: bytes):
    folder = make_concept()
    (tmp_path / "private.png").write_bytes(noise_png)
    (folder / "images" / "9.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(ImageError, match=r"9\.png: found a link to .*private\.png, need a picture inside"):
        concepts.load_folder(folder)


def test_an_images_folder_linked_from_elsewhere_is_refused(make_concept, tmp_path: Path):
    folder = make_concept(pictures=0)
    (folder / "images").rmdir()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere" / "0.png")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match=r"found a link to .*elsewhere/0\.png"):
        concepts.load_folder(folder)


def test_an_unknown_suffix_is_named(make_concept):
    folder = make_concept()
    (folder / "images" / "9.heic").write_bytes(b"x")
    with pytest.raises(ImageError) as error:
        concepts.load_folder(folder)
    assert str(error.value) == (
        f"{folder}/images/9.heic: found a .heic file, need one of .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp; "
        "convert or remove it"
    )


def test_notes_and_hidden_files_may_lie_beside_pictures(make_concept):
    folder = make_concept()
    for name in ("ATTRIBUTION.md", "notes.txt", ".DS_Store"):
        (folder / "images" / name).write_text("x")
    assert len(concepts.load_folder(folder).images) == 2


@pytest.mark.parametrize("prompt", ["photo of some cattle", "photo of a concatenation", "photo of a dog", "a cat_food"])
def test_the_category_must_be_a_word_of_the_class_prompt(make_concept, prompt: str):
    folder = make_concept(category="cat", class_prompt=prompt)
    with pytest.raises(ConceptError) as error:
        concepts.load_folder(folder)
    assert str(error.value) == (
        f"{folder}/concept.yaml: found class_prompt {prompt!r}, need the category 'cat' in it; "
        'for example "photo of a cat"'
    )


@pytest.mark.parametrize("prompt", ["cat", "photo of a Cat.", "a black-cat photo", "photo of a teddy bear, cat"])
def test_a_category_that_is_a_word_is_found(make_concept, prompt: str):
    assert concepts.load_folder(make_concept(category="cat", class_prompt=prompt)).class_prompt == prompt


@pytest.mark.parametrize(("prompt", "count"), [("a cup on a table", 0), ("a {} and a {}", 2)])
@pytest.mark.parametrize("field", ["instance_prompt", "prompts"])
def test_a_prompt_names_the_concept_exactly_once(make_concept, prompt: str, count: int, field: str):
    folder = make_concept(instance_prompt=prompt) if field == "instance_prompt" else make_concept()
    given = [prompt] if field == "prompts" else None
    with pytest.raises(ConfigError) as error:
        concepts.load_folder(folder, given)
    assert str(error.value) == (
        f"{field}: found {count} placeholders in {prompt!r}, need exactly one {{}} where the concept goes; "
        'for example "a {} on the beach"'
    )


def test_a_missing_file_of_prompts(make_concept):
    folder = make_concept(prompts="none.txt")
    with pytest.raises(
        ConfigError, match=r"prompts: found no file .*none\.txt, need one prompt a line with \{\} for the"
    ):
        concepts.load_folder(folder)


def test_an_empty_file_of_prompts(make_concept):
    folder = make_concept()
    (folder / "prompts.txt").write_text("# only a comment\n\n")
    with pytest.raises(ConfigError, match=r"prompts: found .*prompts\.txt empty, need one prompt a line"):
        concepts.load_folder(folder)


def test_a_typo_in_a_field_is_named(make_concept):
    folder = make_concept(titel="A mug")
    with pytest.raises(ConceptError) as error:
        concepts.load_folder(folder)
    assert str(error.value) == (
        f"{folder}/concept.yaml: found titel wrong (Extra inputs are not permitted), need the fields name, title, category, "
        "modifier_token, initializer_token, instance_prompt, class_prompt, captions, prompts, licence, attribution"
    )


def test_a_typo_in_a_needed_field_is_named_with_the_field(make_concept):
    folder = make_concept(class_prompt=None, class_promt="photo of a cup")
    with pytest.raises(ConceptError, match=r"class_prompt wrong \(Field required\).*class_promt wrong \(Extra inputs"):
        concepts.load_folder(folder)


@pytest.mark.parametrize("token", ["teal", "<two words>", "<|endoftext|>", "<>"])
def test_a_modifier_token_has_angle_brackets(make_concept, token: str):
    with pytest.raises(ConceptError, match="found modifier_token wrong"):
        concepts.load_folder(make_concept(modifier_token=token))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: [", "text that is not YAML"),
        (b"", "the file wrong"),
        (b"- 1", "the file wrong"),
        (b"name: \xff\xfe", "text that is not YAML"),
    ],
)
def test_a_file_that_is_no_mapping(make_concept, data: bytes, words: str):
    folder = make_concept()
    (folder / "concept.yaml").write_bytes(data)
    with pytest.raises(ConceptError, match=rf"concept\.yaml: found (?s:{words}.*need)"):
        concepts.load_folder(folder)


def test_yaml_runs_no_program(make_concept, tmp_path: Path):
    folder = make_concept()
    (folder / "concept.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConceptError, match="not YAML"):
        concepts.load_folder(folder)
    assert not (tmp_path / "made").exists()


def test_a_folder_without_concept_yaml(tmp_path: Path):
    with pytest.raises(
        ConceptError,
        match=r"found no concept\.yaml, need one; `customdiff new` writes one, or copy that of data/concepts/cat",
    ):
        concepts.load_folder(tmp_path)


def test_two_concepts_cannot_share_a_token(make_concept, tmp_path: Path):
    make_concept("mug", modifier_token="<mine>")
    make_concept("teapot", modifier_token="<mine>")
    with pytest.raises(ModifierTokenError) as error:
        concepts.load("mug", data=tmp_path)
    assert str(error.value) == (
        "modifier token: found <mine> in concepts 'mug' and 'teapot', need one token a concept; "
        f"change modifier_token in {tmp_path}/concepts/mug/concept.yaml"
    )


def test_a_picture_that_changes_during_a_run_is_noticed(make_concept):
    folder = make_concept()
    concept = concepts.load_folder(folder)
    assert concept.read(concept.images[0]).startswith(b"\x89PNG")
    Image.new("RGB", (32, 32)).save(folder / "images" / "0.png")
    with pytest.raises(ImageError, match=r"0\.png: found other content than when the run began, need it unchanged"):
        concept.read(concept.images[0])


def test_the_digest_is_of_what_training_sees_and_of_no_path(make_concept, tmp_path: Path):
    folder = make_concept()
    concept = concepts.load_folder(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert concepts.load_folder(moved).digest == concept.digest
    assert "folder" not in concept.model_dump()
    assert concepts.load_folder(moved, ["other {}"]).digest == concept.digest
    spec = yaml.safe_load((moved / "concept.yaml").read_text())
    for change in ({"modifier_token": "<x>"}, {"initializer_token": "pll"}, {"instance_prompt": "a {}"}):
        (moved / "concept.yaml").write_text(yaml.safe_dump(spec | change))
        assert concepts.load_folder(moved).digest != concept.digest
    (moved / "concept.yaml").write_text(yaml.safe_dump(spec))
    Image.new("RGB", (32, 32)).save(moved / "images" / "1.png")
    assert concepts.load_folder(moved).digest != concept.digest
