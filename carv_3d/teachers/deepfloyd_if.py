"""DeepFloyd IF, stage I, as a frozen teacher: pixels without a VAE, T5's text, and a learned variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from carv_3d.teachers.families import DEEPFLOYD_IF
from carv_3d.teachers.packed_text import PackedTextTeacher
from carv_3d.teachers.pixels import Pixels

TOKENS = 77  # of its training, though T5 reads more


class DeepFloydTeacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` whose latents are pixels in [-1, 1], and whose text is T5's (B, L, D).

    `encode` and `decode` move images to that range and back; guidance resizes renders to `image_size` before.
    """

    family = DEEPFLOYD_IF
    default_model = "DeepFloyd/IF-I-XL-v1.0"

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
        words = [prompt.lower().strip() for prompt in prompts]  # as the pipeline does
        text: Tensor = self.states("text_encoder", words, TOKENS, masked=True)[0][0]
        return text.to(self.dtype)
