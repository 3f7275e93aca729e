"""A byte-level BPE of 2,560 tokens, learned from captions and saved as the Qwen2Tokenizer that Z-Image expects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from training.config import TokenizerConfig
from training.data.captions import Captioner, Length
from training.data.chat import CHAT_TEMPLATE, END_TOKEN, PAD_TOKEN, START_TOKEN
from training.data.english import plural, with_article
from training.data.scenes import draw_scene
from training.data.vocabulary import Vocabulary

MAX_TOKENS = 4096
# Qwen's rule for where a word ends.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(vocabulary: Vocabulary, config: TokenizerConfig, folder: Path) -> None:
    """Writes the tokenizer's files; the same vocabulary and config give the same bytes of tokenizer.json."""
    merges = json.loads(_learn(vocabulary, config).to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=merges["vocab"],
        merges=[tuple(merge) for merge in merges["merges"]],
        unk_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[START_TOKEN, END_TOKEN],
        model_max_length=MAX_TOKENS,
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def _learn(vocabulary: Vocabulary, config: TokenizerConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len((START_TOKEN, END_TOKEN, PAD_TOKEN)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(vocabulary, config), trainer)
    return tokenizer


def _corpus(vocabulary: Vocabulary, config: TokenizerConfig) -> Iterator[str]:
    rng = Random(config.seed)
    captioner = Captioner(vocabulary, rng)
    for length, captions in ((Length.SHORT, config.short_captions), (Length.LONG, config.long_captions)):
        for _ in range(captions):
            yield captioner.caption(draw_scene(rng, len(vocabulary)), length).lower()
    for emoji in vocabulary:
        for name in (emoji.label, *emoji.aliases, *emoji.keywords):
            yield from (with_article(name), f"a {name}", name, plural(name)) * config.name_repeats
    yield from ("user\n", "assistant\n", "\n") * config.chat_repeats
