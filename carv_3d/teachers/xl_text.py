"""Stable Diffusion XL's text (arXiv 2307.01952): two CLIP encoders' hidden states, and the second's pooled embedding.

Both travel as one tensor, so that whatever carries text embeddings (guidance, Perp-Neg, threestudio's prompt
processors and their cache) carries Stable Diffusion XL's unchanged: the pooled embedding is the last row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import STABLE_DIFFUSION_XL
from carv_3d.teachers.loading import load_text_parts
from carv_3d.teachers.model_folder import read_json
from carv_3d.teachers.tokens import context_length, tokenize


def pack(text: Tensor, pooled: Tensor) -> Tensor:
    """Join text (B, L, D) and pooled (B, P) to (B, L + 1, max(D, P)), padded with zeros."""
    width = max(text.shape[-1], pooled.shape[-1])
    rows = (F.pad(x, (0, width - x.shape[-1])) for x in (text, pooled[:, None]))
    return torch.cat(list(rows), dim=1)


def unpack(packed: Tensor, text_width: int, pooled_width: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack` for D = text_width and P = pooled_width."""
    return packed[:, :-1, :text_width], packed[:, -1, :pooled_width]


class XLText:
    """Prompts to packed embeddings, without a UNet."""

    def __init__(self, encoders: tuple[Any, Any], tokenizers: tuple[Any, Any], empty_is_zero: bool = True) -> None:
        """Two encoders and their tokenizers.

        Args:
            encoders: CLIP's two, the second with a projection.
            tokenizers: one for each.
            empty_is_zero: the prompt "" is zeros, as the model was trained without text; else it is encoded.

        Raises:
            CarvError: the two do not read equally many tokens.
        """
        self.encoders = tuple(encoder.eval().requires_grad_(False) for encoder in encoders)
        self.tokenizers = tokenizers
        self.empty_is_zero = empty_is_zero
        lengths = [context_length(*pair) for pair in zip(encoders, tokenizers)]
        if lengths[0] != lengths[1]:
            raise CarvError(f"the text encoders read {lengths[0]} and {lengths[1]} tokens; both must read as many.")
        self.context_length = lengths[0]
        self.text_width = sum(int(encoder.config.hidden_size) for encoder in encoders)
        self.pooled_width = int(encoders[1].config.projection_dim)

    @classmethod
    def from_parts(cls, folder: Any, parts: dict[str, Any]) -> XLText:
        """The text parts of `loading`, and what the folder's model_index.json says of the empty prompt."""
        empty_is_zero = read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        encoders = (parts["text_encoder"], parts["text_encoder_2"])
        return cls(encoders, (parts["tokenizer"], parts["tokenizer_2"]), bool(empty_is_zero))

    @classmethod
    def load(cls, name_or_path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> XLText:
        """The text encoders of a model alone. Raises CarvError as `LatentDiffusionTeacher.load`."""
        folder = resolve_model(name_or_path, family=STABLE_DIFFUSION_XL)
        parts = load_text_parts(folder, dtype, STABLE_DIFFUSION_XL)
        for part in STABLE_DIFFUSION_XL.text_encoders:
            parts[part] = parts[part].to(device)
        return cls.from_parts(folder, parts)

    @torch.no_grad()
    def __call__(self, prompts: list[str], device: torch.device | None = None) -> Tensor:
        """Packed embeddings; what is too long is cut off, with a note in the log.

        Args:
            prompts: B of them.
            device: where the encoders work, if not where they lie.

        Returns:
            (B, L + 1, max(D, P)), see `pack`, in the encoders' dtype.
        """
        states, pooled = [], None
        for encoder, tokenizer in zip(self.encoders, self.tokenizers):
            here = device or next(encoder.parameters()).device
            tokens = tokenize(tokenizer, prompts, self.context_length)
            with torch.autocast(here.type, enabled=False):
                output = encoder(tokens["input_ids"].to(here), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = getattr(output, "text_embeds", None)  # the second encoder's is the one that counts
        assert pooled is not None
        packed = pack(torch.cat(states, dim=-1), pooled)
        if self.empty_is_zero:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=packed.device)
            packed = torch.where(empty[:, None, None], torch.zeros_like(packed), packed)
        return packed
