"""Any diffusers SANA model as a frozen teacher; arXiv 2410.10629. Flow matching, Gemma's text, deep latents."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from carv_3d.teachers.families import SANA
from carv_3d.teachers.packed_text import PackedTextTeacher
from carv_3d.teachers.tokens import text_config
from carv_3d.teachers.xl_text import pack

TOKENS = 300  # diffusers' max_sequence_length


def instruction() -> str:
    """What the pipeline says to Gemma in front of a prompt, from diffusers itself."""
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines or [])


class SanaTeacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` with Gemma's text and its mask, (B, L + 1, max(D, L)).

    Prompts stand behind the pipeline's instruction; the empty prompt stands alone, as the pipeline has it. The
    encoder gives one value for an image, so no posterior is sampled.
    """

    family = SANA
    default_model = "Efficient-Large-Model/Sana_1600M_512px_diffusers"

    @property
    def context_length(self) -> int:
        """L, the tokens of a prompt."""
        return TOKENS

    @property
    def text_parts(self) -> list[tuple[Any, dict[str, Any]]]:
        """Gemma, with its configuration, its words and the instruction."""
        return [
            (encoder, text_config(encoder, self._tokenizer(part), instruction=instruction()))
            for part, encoder in self.encoders.items()
        ]

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The transformer's arguments for packed text (N, L + 1, D). Raises CarvError for another width."""
        text, mask = self.unpacked(text_emb, int(self.network.config.caption_channels), TOKENS)
        # of a mixture of two prompts a token of either counts
        return {"encoder_hidden_states": text, "encoder_attention_mask": (mask > 0).to(text.dtype)}

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The transformer's own output: (N, C, h, w), (N,) -> (N, C, h, w)."""
        scale = getattr(self.network.config, "timestep_scale", 1.0)
        return super().run_network(given, time * scale, conditions)

    def _encode_text(self, prompts: list[str]) -> Tensor:
        words = [prompt.lower().strip() for prompt in prompts]  # as the pipeline does
        rows = [self._encode_prompt(prompt) for prompt in words]
        return torch.cat(rows).to(self.dtype)

    def _encode_prompt(self, prompt: str) -> Tensor:
        before, length, kept = "", TOKENS, torch.arange(TOKENS)
        if "text_encoder" in self.encoders:
            self._tokenizer("text_encoder").padding_side = "right"
            if prompt:
                before = instruction()
                length += len(self._tokenizer("text_encoder").encode(before)) - 2
                # the first token and the last, so that of the instruction the end alone is left
                kept = torch.tensor([0, *range(length - TOKENS + 1, length)])
        output, mask = self.states("text_encoder", [before + prompt], length, masked=True)
        kept = kept.to(mask.device)
        return pack(output[0][:, kept], mask[:, kept].to(output[0].dtype))
