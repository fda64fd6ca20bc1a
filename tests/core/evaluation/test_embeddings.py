import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customdiff_core import images
from customdiff_core.artifacts import Store
from customdiff_core.config import Runtime
from customdiff_core.errors import DeviceMemoryError
from customdiff_core.evaluation.embeddings import FILE, embedded
from customdiff_core.evaluation.judge import Judge
from customdiff_core.profiles import Profile
from customdiff_core.recipes import Recipe

RECIPE = Recipe(kind="embeddings", inputs={"encoder": "x"}, config={}, code="0", versions={})
ALPHABET = [chr(97 + number) for number in range(26)]


class Counted:
    """An encoder of letters that knows what it was asked for."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.asked = names, list[str]()

    def __call__(self, places: list[int]) -> np.ndarray:
        self.asked += [self.names[place] for place in places]
        return np.array([[ord(self.names[place]), 1.5] for place in places], np.float32)


def look(store: Store, names: list[str], recipe: Recipe = RECIPE) -> tuple[np.ndarray, list[str]]:
    encoder = Counted(names)
    return embedded(names, recipe, encoder, store=store), encoder.asked


def test_each_is_embedded_once_in_whatever_set_it_comes(store: Store) -> None:
    vectors, asked = look(store, ["b", "a", "b"])
    assert asked == ["b", "a"]
    assert vectors.tolist() == [[98, 1.5], [97, 1.5], [98, 1.5]]
    vectors, asked = look(store, ["c", "a", "b"])
    assert asked == ["c"]
    assert vectors[:, 0].tolist() == [99, 97, 98]
    assert look(store, ["a", "c"])[1] == []


def test_another_encoder_has_vectors_of_its_own(store: Store) -> None:
    look(store, ["a"])
    assert look(store, ["a"], RECIPE.model_copy(update={"inputs": {"encoder": "y"}}))[1] == ["a"]


def test_a_run_that_is_broken_off_leaves_nothing_half_done(store: Store) -> None:
    def broken(places: list[int]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded(["a", "b"], RECIPE, broken, store=store)
    assert look(store, ["a", "b"])[1] == ["a", "b"]


def path_of(store: Store) -> Path:
    return store.scratch("embeddings", RECIPE.key) / FILE


def test_a_damaged_vector_is_embedded_again(store: Store) -> None:
    look(store, ["a", "b"])
    with sqlite3.connect(path_of(store)) as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE digest = 'a'", (np.zeros(2, np.float32).tobytes(),))
    connection.close()
    vectors, asked = look(store, ["a", "b"])
    assert asked == ["a"]
    assert vectors[0, 0] == 97


def test_a_damaged_file_is_made_anew(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    look(store, ["a"])
    path_of(store).write_bytes(b"no database" * 100)
    assert look(store, ["a"])[1] == ["a"]
    assert "file is not a database; embedding anew" in caplog.text
    assert look(store, ["a"])[1] == []


def test_what_another_process_holds_is_not_thrown_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    look(store, ["a"])
    monkeypatch.setattr("customdiff_core.evaluation.embeddings.BUSY_SECONDS", 0.01)
    other = sqlite3.connect(path_of(store), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        look(store, ["a"])
    other.execute("COMMIT")
    other.close()
    assert look(store, ["a"])[1] == []


def test_more_than_one_question_holds_are_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customdiff_core.evaluation.embeddings.ASKED", 4)
    look(store, ALPHABET)
    vectors, asked = look(store, ALPHABET[::-1])
    assert asked == []
    assert vectors[:, 0].tolist() == [ord(one) for one in ALPHABET[::-1]]


def test_pictures_are_decoded_as_the_encoder_asks_for_them(openmoji: Profile, store: Store, monkeypatch) -> None:
    """Hundreds of large ones at once would not fit into memory."""
    decoded: list[str] = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda data, name: (decoded.append(name), real(data, name))[1])

    class Asking:
        def images(self, pictures: Iterable[Image.Image]) -> np.ndarray:
            return np.array([[len(decoded), one.width] for one in pictures], np.float32)

    judge = Judge(openmoji, store, Runtime())
    judge.__dict__["encoder"] = Asking()
    data = [images.encode(Image.new("RGB", (20 + number, 20))) for number in range(3)]
    assert judge.images(data).tolist() == [[1, 20], [2, 21], [3, 22]]


def test_a_gpu_without_room_for_the_judge_says_what_to_do(openmoji: Profile, store: Store) -> None:
    class Full:
        def images(self, pictures: Iterable[Image.Image]) -> np.ndarray:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    judge = Judge(openmoji, store, Runtime())
    judge.__dict__["encoder"] = Full()
    with pytest.raises(
        DeviceMemoryError, match=r"^judging pictures: found no GPU memory left .*; set model\.device to cpu"
    ):
        judge.images([images.encode(Image.new("RGB", (20, 20)))])
