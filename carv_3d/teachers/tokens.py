"""From prompts to CLIP's tokens, padded to the context; what is cut off is said."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def context_length(text_encoder: Any, tokenizer: Any) -> int:
    """L: how many tokens the encoder reads. A tokenizer without a limit says 1e30."""
    # T5 has no positions of its own
    return min(int(tokenizer.model_max_length), int(getattr(text_encoder.config, "max_position_embeddings", 2**30)))


def text_config(text_encoder: Any, tokenizer: Any, **more: Any) -> dict[str, Any]:
    """What changes an embedding besides the encoder's parameters: its own configuration, and the tokenizer's words."""
    config = {k: v for k, v in text_encoder.config.to_dict().items() if k != "transformers_version"}
    return {
        **config, "context": context_length(text_encoder, tokenizer), "words": tokenizer.get_vocab(), **more
    }  # fmt: skip


def tokenize(tokenizer: Any, prompts: list[str], length: int) -> Any:
    """B prompts -> input_ids and attention_mask (B, length); prompts that are longer are named in the log."""
    for prompt in prompts:
        count = len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
        if count > length:
            log.warning("%r is cut off: %d tokens of %d.", prompt, count, length)
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def shortened(tokenizer: Any, prompt: str, endings: Sequence[str], length: int) -> str:
    """The prompt, without its last words where one of the endings would not fit behind it; the log says so.

    Args:
        tokenizer: of the text encoder.
        prompt: the text.
        endings: what will stand behind the prompt, such as ", left view".
        length: tokens that the encoder reads.

    Returns:
        The longest beginning of whole words that fits with every ending; the prompt itself where none does.
    """

    def fits(text: str) -> bool:
        return all(len(tokenizer(text + e, truncation=False, verbose=False)["input_ids"]) <= length for e in endings)

    if fits(prompt):
        return prompt
    low, high = 0, len(prompt)  # prompt[:low] fits, prompt[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(prompt[:middle]) else (low, middle)
    kept = prompt[:low]
    if prompt[low].isalnum() and len(kept.split()) > 1:
        kept = kept.rsplit(None, 1)[0]
    kept = kept.rstrip(" ,;\t\n")
    if not kept:
        return prompt
    log.warning("%r is cut to %r, so that the words of each view fit in %d tokens.", prompt, kept, length)
    return kept
