"""Any diffusers Stable Diffusion 3 or 3.5 model as a frozen teacher; arXiv 2403.03206."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.teachers.families import STABLE_DIFFUSION_3
from carv_3d.teachers.packed_text import PackedTextTeacher
from carv_3d.teachers.tokens import context_length
from carv_3d.teachers.xl_text import pack

T5_TOKENS = 256  # diffusers' max_sequence_length


class StableDiffusion3Teacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` with two CLIP encoders, and T5: zeros where it is absent."""

    family = STABLE_DIFFUSION_3
    default_model = "stabilityai/stable-diffusion-3.5-medium"

    @property
    def context_length(self) -> int:
        """T5's tokens; CLIP's where there is no T5."""
        if "text_encoder_3" in self.encoders:
            return T5_TOKENS
        return context_length(self.encoders["text_encoder"], self._tokenizer("text_encoder"))

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The transformer's arguments for packed text (N, L + 1, D). Raises CarvError for another width."""
        config = self.network.config
        text, pooled = self.unpacked(text_emb, config.joint_attention_dim, config.pooled_projection_dim)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def _encode_text(self, prompts: list[str]) -> Tensor:
        hidden, pooled = [], []
        for part in ("text_encoder", "text_encoder_2"):
            length = context_length(self.encoders[part], self._tokenizer(part)) if part in self.encoders else 0
            output, _ = self.states(part, prompts, length, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        width = int(self.network.config.joint_attention_dim)
        clip = torch.cat(hidden, dim=-1)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        if "text_encoder_3" in self.encoders:
            t5 = self.states("text_encoder_3", prompts, T5_TOKENS)[0][0]
        else:
            t5 = clip.new_zeros(len(prompts), T5_TOKENS, width)
        return pack(torch.cat([clip, t5], dim=1), torch.cat(pooled, dim=-1)).to(self.dtype)
