from customdiff_core import images, tables
from customdiff_core.config import RetrieveConfig, Runtime
from customdiff_core.retrieval.generated import draw_regularization


def test_the_base_model_draws_its_class_prompt_once_a_seed(chain):
    config = RetrieveConfig(count=3, candidates=3, source="generated")
    made = draw_regularization(chain.concept, chain.profile, config, store=chain.store, runtime=Runtime(device="cpu"))
    table = tables.read(chain.store, made, "regularization")
    assert made.rows == len(table) == 3
    assert set(table["caption"]) == {"photo of a cat"}
    assert len(set(table["source_sha256"])) == 3
    recipes = [images.recipe_of(data) for data in table["image"]]
    assert [(one["prompt"], one["seed"], one["delta"]) for one in recipes] == [
        ("photo of a cat", seed, None) for seed in range(3)
    ]
    known = set(tables.read(chain.store, chain.regularization, "regularization").columns)
    assert known <= set(table.columns) | {"similarity"}  # the stages after it read either
