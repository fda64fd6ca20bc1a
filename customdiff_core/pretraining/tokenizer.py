"""Tokenizer: byte-level byte-pair encoding of the world's captions, in CLIPTokenizer's files."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.pretraining import corpus, stages
from customdiff_core.pretraining.config import TokenizerConfig

START, END = "<|startoftext|>", "<|endoftext|>"
# Words that no caption says, one token each: V* starts from them, DreamBooth uses them.
RARE = ("ktn", "pll", "ucd", "sks", "mafl")
SUFFIX = "</w>"
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer(scenes: Artifact, config: TokenizerConfig, *, store: Store) -> Artifact:
    """Learn the words of the captions.

    Returns:
        A `tokenizer` artifact: vocab.json, merges.txt and the configuration, as transformers writes them.
    """

    def produce(folder: Path) -> int:
        captions = corpus.load(store, scenes, "training").captions
        vocabulary, merges = _learn(captions, config.vocabulary - len(RARE) - 2)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=config.length)
        made.save_pretrained(folder)
        return len(made)

    return store.make(stages.tokenizer(scenes, config), produce)


def load(store: Store, artifact: Artifact) -> Any:
    """Open the tokenizer."""
    return CLIPTokenizer.from_pretrained(store.path(artifact))


def _learn(captions: list[str], size: int) -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary and the merges; the rare words come last but for beginning and end, the largest ids.

    CLIP pools at the largest id of a prompt, so that the end has to be it.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX, continuing_subword_prefix=""))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_pattern(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix=SUFFIX, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = [
        " ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(learner.to_str())["model"]["merges"]
    ]
    merges += [merge for word in RARE for merge in _spelling(word) if merge not in merges]
    merges = list(dict.fromkeys(merges))
    tokens = [*alphabet, *(letter + SUFFIX for letter in alphabet), *("".join(merge.split(" ")) for merge in merges)]
    tokens = [*dict.fromkeys(tokens), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _pattern() -> Any:
    from tokenizers import Regex

    return Regex(SPLIT)


def _spelling(word: str) -> list[str]:
    """The merges that make one token of a word, letter by letter."""
    letters = [*word[:-1], word[-1] + SUFFIX]
    return [f"{''.join(letters[:count])} {letters[count]}" for count in range(1, len(letters))]
