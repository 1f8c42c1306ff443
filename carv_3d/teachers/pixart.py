"""Any diffusers PixArt-alpha or PixArt-sigma model as a frozen teacher; arXiv 2310.00426, 2403.04692."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from carv_3d.teachers.families import PIXART
from carv_3d.teachers.packed_text import PackedTextTeacher
from carv_3d.teachers.xl_text import pack

TOKENS = {"PixArtSigmaPipeline": 300}  # diffusers' max_sequence_length, by pipeline
ALPHA_TOKENS = 120


class PixArtTeacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` with T5's text and its mask, (B, L + 1, max(D, L))."""

    family = PIXART
    default_model = "PixArt-alpha/PixArt-Sigma-XL-2-512-MS"

    @property
    def context_length(self) -> int:
        """L, the tokens of a prompt."""
        return TOKENS.get(self.pipeline, ALPHA_TOKENS)

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The transformer's arguments for packed text (N, L + 1, D). Raises CarvError for another width."""
        text, mask = self.unpacked(text_emb, int(self.network.config.caption_channels), self.context_length)
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.network.config.use_additional_conditions:
            sizes = {
                "resolution": text.new_full((len(text), 2), float(self.image_size)),
                "aspect_ratio": text.new_ones(len(text), 1),
            }
        # of a mixture of two prompts a token of either counts
        mask = (mask > 0).to(text.dtype)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}

    def _encode_text(self, prompts: list[str]) -> Tensor:
        words = [prompt.lower().strip() for prompt in prompts]  # as the pipeline does
        output, mask = self.states("text_encoder", words, self.context_length, masked=True)
        return pack(output[0], mask.to(output[0].dtype)).to(self.dtype)
