"""Two concepts by two models on equal noise, measured and told: on the chain's small artifacts."""

import numpy as np
import pytest

from customdiff_core import concepts, images, tables
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import fill
from customdiff_core.config import EvaluateConfig, Runtime, SampleConfig
from customdiff_core.errors import ConfigError
from customdiff_core.evaluation.report_together import report_together
from customdiff_core.evaluation.results import sources
from customdiff_core.evaluation.together import evaluate_together
from customdiff_core.lineage import Taught
from customdiff_core.retrieval.encoder import Encoder

PROMPTS = ("a {0} and a {1}", "photo of a {1} and a {0} <b>")
CONFIG = EvaluateConfig(seeds=(0, 1), sample=SampleConfig(steps=2, guidance_scale=4))


@pytest.fixture(scope="module")
def both(chain):
    return chain.concept, concepts.load("dog")


@pytest.fixture(scope="module")
def together(chain, dog_delta, both) -> Artifact:
    subjects = {"merged": chain.delta, "joint": dog_delta}
    # Each knows one of the two words; the other is read as letters, which is good enough to be measured.
    return evaluate_together(
        both, subjects, PROMPTS, chain.profile, CONFIG, store=chain.store, runtime=Runtime(device="cpu")
    )


def test_every_model_draws_every_prompt_with_the_words_it_has(chain, both, together: Artifact):
    sets = sources(together, chain.store)
    assert list(sets) == ["base", "merged", "joint"]
    words = {name: tables.read(chain.store, one, "samples")["prompt"].unique().tolist() for name, one in sets.items()}
    assert words["base"] == ["a cat and a dog", "photo of a dog and a cat <b>"]
    assert words["merged"] == words["joint"] == [fill(prompt, [one.noun for one in both]) for prompt in PROMPTS]
    scores = tables.read(chain.store, together, "scores")
    assert len(scores) == 3 * len(PROMPTS) * 2
    assert set(scores["all_present"]) <= {0.0, 1.0}


def test_each_concepts_figure_is_of_its_own_pictures(chain, both, together: Artifact):
    """And the words are those of the prompt with both categories in their places."""
    judge, scores = Encoder(chain.profile.judge, "cpu"), tables.read(chain.store, together, "scores")
    words = judge.texts([fill(prompt, ["cat", "dog"]) for prompt in PROMPTS])
    for subject, one in sources(together, chain.store).items():
        drawn = tables.read(chain.store, one, "samples")
        seen, found = judge.images(map(images.open_trusted, drawn["image"])), scores[scores["subject"] == subject]
        said = (seen * words[drawn["prompt_id"]]).sum(axis=1)
        np.testing.assert_allclose(found["text_alignment"], 2.5 * said.clip(0), atol=1e-4)
        for concept in both:
            held_out = [images.decode(concept.read(part, "held_out"), part.name) for part in concept.held_out]
            cosine = (seen @ judge.images(held_out).T).mean(axis=1)
            np.testing.assert_allclose(found[f"image_alignment_{concept.name}"], cosine, atol=1e-4)


def test_figures_have_intervals_and_paired_differences(chain, together: Artifact):
    table = tables.read(chain.store, together, "metrics")
    measured = table[table["subject"] != "judge"]
    assert set(measured["subject"]) == {"base", "merged", "joint", "merged - base", "joint - base"}
    assert set(measured["metric"]) == {"text_alignment", "image_alignment_cat", "image_alignment_dog", "all_present"}
    assert (measured["ci_low"] <= measured["value"]).all()
    assert (measured["value"] <= measured["ci_high"]).all()
    shares = measured[(measured["metric"] == "all_present") & ~measured["subject"].str.contains(" - ")]
    assert ((shares["ci_low"] >= 0) & (shares["ci_high"] <= 1)).all()
    values = measured.set_index(["metric", "subject"])["value"]
    for metric in set(measured["metric"]):
        difference = values[metric, "merged"] - values[metric, "base"]
        assert values[metric, "merged - base"] == pytest.approx(difference)


def test_the_judge_of_presence_is_judged_itself(chain, both, together: Artifact):
    """On every pair of the concepts' held-out pictures in both orders, and on each alone; the others have two backgrounds."""
    judge = tables.read(chain.store, together, "metrics").query("subject == 'judge'")
    known = [len(one.held_out) for one in both]
    assert judge["n"].tolist() == [2 * max(known) ** 2, sum(known)]
    assert judge["value"].iloc[0] > 0.7
    assert judge["value"].iloc[1] < 0.1


def test_the_page_shows_every_prompt_and_escapes_it(chain, both, together: Artifact, dog_delta):
    chained = {"together": together, "merged": chain.delta, "joint": dog_delta}
    page = report_together(both, chained, chain.profile, store=chain.store)
    html = (chain.store.path(page) / "report.html").read_text()
    assert "photo of a dog and a cat &lt;b&gt;" in html
    assert "<b>" not in html.replace('<b class="', "").split("Every prompt, every model")[1].split("Figures")[0]
    assert "the teal cat and the purple dog" in html
    assert html.count('src="data:image/webp;base64,') == 6 + 5 + 3 * 2 * 2
    assert "http:" not in html
    assert "https:" not in html


def test_a_concept_without_pictures_is_drawn_and_read_but_not_compared(chain, dog_delta):
    """An imported one: its words are known, its pictures are not; the judge of presence is asked about the others'."""
    theirs = concepts.of_taught(Taught(name="theirs", category="dog", modifier_token="<purple-dog>"))
    shown, config = (chain.concept, theirs), CONFIG.model_copy(update={"seeds": (0,)})
    words, cpu = {"merged": ("<teal-cat-2> cat", "<purple-dog> dog")}, Runtime(device="cpu")
    made = evaluate_together(
        shown, {"merged": dog_delta}, PROMPTS[:1], chain.profile, config, words, store=chain.store, runtime=cpu
    )
    table = tables.read(chain.store, made, "metrics")
    assert set(table["metric"]) == {
        "text_alignment",
        "image_alignment_cat",
        "all_present",
        "said to show all, of pictures that do not",
    }
    drawn = tables.read(chain.store, sources(made, chain.store)["merged"], "samples")
    assert set(drawn["prompt"]) == {"a <teal-cat-2> cat and a <purple-dog> dog"}  # as this model calls them
    page = report_together(shown, {"together": made, "merged": dog_delta}, chain.profile, store=chain.store)
    assert "was learnt elsewhere: none of its pictures are here" in (chain.store.path(page) / "report.html").read_text()


def test_two_concepts_of_one_name_have_a_figure_each(chain, dog_delta, both):
    twins = (both[0], both[1].model_copy(update={"name": "cat"}))
    config = CONFIG.model_copy(update={"seeds": (0,)})
    made = evaluate_together(
        twins,
        {"merged": dog_delta},
        PROMPTS[:1],
        chain.profile,
        config,
        store=chain.store,
        runtime=Runtime(device="cpu"),
    )
    metrics = set(tables.read(chain.store, made, "metrics")["metric"])
    assert {"image_alignment_cat 1", "image_alignment_cat 2"} <= metrics


def test_a_prompt_that_misses_a_concept_is_refused(chain, both):
    with pytest.raises(ConfigError) as error:
        evaluate_together(both, {}, ("a {0}",), chain.profile, CONFIG, store=chain.store)
    assert str(error.value) == (
        "prompts: found 0 of {1} in 'a {0}', need each of 2 concepts once; for example \"a {0} and a {1}\""
    )


@pytest.mark.parametrize("count", [2, 3])
def test_there_are_prompts_for_two_and_three(count: int):
    found = concepts.prompts_together(count)
    assert len(found) == 8
    assert concepts.prompts_together(count, list(found)) == found
    with pytest.raises(ConfigError, match=r"prompts: found no file .*together-mine.txt"):
        concepts.prompts_together(count, file="together-mine.txt")


def test_categories_are_filled_in_one_by_one():
    assert fill("a {1} and a {0}", ["<a> cat", "<b> dog"]) == "a <b> dog and a <a> cat"
