"""DeepFloyd IF, stage I, as a frozen teacher: pixels without a VAE, T5's text, and a learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carv_3d.teachers.families import DEEPFLOYD_IF
from carv_3d.teachers.loading import choose_device, choose_dtype, load_text_parts
from carv_3d.teachers.packed_text import PackedTextTeacher, text_states
from carv_3d.teachers.pixels import Pixels

TOKENS = 77  # of its training, though T5 reads more


class DeepFloydTeacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` whose latents are pixels in [-1, 1], and whose text is T5's (B, L, D).

    `encode` and `decode` move images to that range and back; guidance resizes renders to `image_size` before.
    """

    family = DEEPFLOYD_IF
    default_model = "DeepFloyd/IF-I-XL-v1.0"
    bounded = True  # a clean sample is in [-1, 1], so samplers cut it to that

    @classmethod
    def _from_parts(cls, folder: Path, parts: dict[str, Any], **known: Any) -> DeepFloydTeacher:
        pixels = Pixels(int(parts["unet"].config.sample_size))
        return super()._from_parts(folder, {**parts, "vae": pixels}, **known)

    @property
    def context_length(self) -> int:
        """L, the tokens of a prompt."""
        return TOKENS

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The UNet's arguments for text (N, L, D). Raises CarvError for another width."""
        config = self.network.config
        width = int(config.encoder_hid_dim or config.cross_attention_dim)
        self.check_width(text_emb, width, "make them by its own text_embeddings")
        return {"encoder_hidden_states": text_emb.to(self.dtype)}

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The predicted noise of the UNet's output, without the variance: (N, 3, h, w), (N,) -> (N, 3, h, w)."""
        prediction: Tensor = self.network(given, time, return_dict=False, **conditions)[0]
        return prediction[:, : given.shape[1]]

    def _encode_text(self, prompts: list[str]) -> Tensor:
        text: Tensor = self.states("text_encoder", _prepared(prompts), TOKENS, masked=True)[0][0]
        return text.to(self.dtype)


def _prepared(prompts: Sequence[str]) -> list[str]:
    return [prompt.lower().strip() for prompt in prompts]  # as the pipeline does


@torch.no_grad()
def embed_prompts(folder: Path, prompts: Sequence[str], device: str | torch.device | None = None) -> Tensor:
    """The text embeddings of a model, as `DeepFloydTeacher.text_embeddings` gives them, without loading its UNet.

    Args:
        folder: of the model, as `resolve_model` gives it.
        prompts: B of them.
        device: CUDA if there is one, unless named; float16 there, float32 elsewhere.

    Returns:
        (B, 77, D).

    Raises:
        CarvError: as `load_parts`.
    """
    device = choose_device(device)
    parts = load_text_parts(folder, choose_dtype(device, None, DEEPFLOYD_IF.half), DEEPFLOYD_IF)
    encoder = parts["text_encoder"].to(device).eval()
    text: Tensor = text_states(encoder, parts["tokenizer"], _prepared(prompts), TOKENS, device, masked=True)[0][0]
    return text
