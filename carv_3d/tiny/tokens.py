"""The tokenizer of carv-tiny, in CLIP's format: one token a word it was taught, letters for all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from carv_3d.tiny.vocabulary import LONGEST, all_words

WORDS = LONGEST + 2  # tokens for a caption, with start and end
CELLS = 16  # tokens after it for the layout of the image, see layout.py
LENGTH = WORDS + CELLS
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> Any:
    """Write vocab.json, merges.txt and tokenizer.json into ``folder``; returns the CLIPTokenizer.

    The merges are those of byte-pair encoding run to its end on the word list, so every word is a single token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(all_words(), trainer)
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m.split()) for m in merges), START, END]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    source = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"),
        unk_token=END, bos_token=START, eos_token=END, pad_token=END, model_max_length=LENGTH,
    )  # fmt: skip
    source.save_pretrained(folder)
    if not (folder / "vocab.json").exists():
        raise RuntimeError("the tokenizer lost its vocab.json")
    return source
