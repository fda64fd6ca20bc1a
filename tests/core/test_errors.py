import inspect

import pytest

from customdiff_core import errors

TREE = {
    "ConfigError": "CustomDiffusionError",
    "ConceptError": "CustomDiffusionError",
    "ModifierTokenError": "ConceptError",
    "ImageError": "CustomDiffusionError",
    "StoreError": "CustomDiffusionError",
    "MissingError": "StoreError",
    "DamagedError": "StoreError",
    "DiskFullError": "StoreError",
    "DeviceMemoryError": "CustomDiffusionError",
    "WeightsError": "CustomDiffusionError",
    "DeltaError": "CustomDiffusionError",
    "MergeError": "CustomDiffusionError",
    "RetrievalError": "CustomDiffusionError",
    "FetchError": "RetrievalError",
    "TooFewImagesError": "RetrievalError",
    "TrainingError": "CustomDiffusionError",
    "EvaluationError": "CustomDiffusionError",
    "WorldError": "CustomDiffusionError",
    "ServiceError": "CustomDiffusionError",
}


def test_the_tree_is_the_one_drawn_in_the_docstring():
    classes = {
        name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
    }
    found = {name: kind.__base__.__name__ for name, kind in classes.items() if name != "CustomDiffusionError"}
    assert found == TREE
    assert all(name in (errors.__doc__ or "") for name in classes)


@pytest.mark.parametrize("name", TREE)
def test_one_except_catches_every_error_of_the_project(name: str):
    with pytest.raises(errors.CustomDiffusionError, match="found"):
        raise getattr(errors, name)("x: found 1, need 2; add one")
