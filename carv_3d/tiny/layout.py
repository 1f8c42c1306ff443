"""What the text encoder learns before the UNet is trained: to predict the image's layout from the caption alone.

Token ``WORDS + i`` of the sequence, padding that follows every caption, learns to predict the latent in cell i of a 4×4
grid. The UNet's cross-attention then only has to look up the token of its own place, the same for all captions.
Without it, how each object turns in each view must be learned through noise: after 290,000 samples left and right were
still confused. A step costs a fourteenth of the UNet's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.tiny.tokens import CELLS, WORDS

SIDE = int(CELLS**0.5)
KEEP = 0.05  # weight of staying near the outputs that an older UNet reads


def latent_cells(z: Tensor) -> Tensor:
    """Latents ``(N, C, S, S)`` by cell, row by row: ``(N, CELLS, C (S / SIDE)^2)``."""
    patch = z.shape[-1] // SIDE
    cells = z.unfold(2, patch, patch).unfold(3, patch, patch)  # (N, C, SIDE, SIDE, patch, patch)
    return cells.permute(0, 2, 3, 1, 4, 5).reshape(len(z), CELLS, -1)


class Layout(nn.Module):
    """A text encoder and the linear map that reads the layout off its last tokens; only the encoder is kept."""

    def __init__(self, text: Any, width: int = 128, channels: int = 4, size: int = 16):
        super().__init__()
        self.text, self.head = text, nn.Linear(width, channels * (size // SIDE) ** 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids ``(N, LENGTH)`` -> hidden states ``(N, LENGTH, D)`` and the layout ``(N, CELLS, ...)``."""
        hidden = self.text(ids).last_hidden_state
        return hidden, self.head(hidden[:, WORDS:])


def loss(model: Layout, z: Tensor, ids: Tensor, older: Any = None) -> Tensor:
    """Squared error of the latents ``z (N, 4, 16, 16)`` predicted from ``ids (N, LENGTH)``; a scalar.

    With an ``older`` text encoder, also a little of the distance to its hidden states of the words.
    """
    hidden, layout = model(ids)
    error = (layout - latent_cells(z)).square().mean()
    if older is None:
        return error
    with torch.no_grad():
        known = older(ids[:, :WORDS]).last_hidden_state
    return error + KEEP * (hidden[:, :WORDS] - known).square().mean()


@torch.no_grad()
def grow(text: Any, older: Any) -> None:
    """Give ``text`` the weights of an ``older`` encoder with fewer positions and layers; its outputs begin the same.

    Positions are continued at random, and further layers start as the identity.
    """
    own, old = text.state_dict(), older.state_dict()
    for name, value in old.items():
        if own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            own[name][: len(value)].copy_(value)
            own[name][len(value) :].normal_(0, 2 * float(value.std()))
    for name, value in own.items():
        if name not in old and ("out_proj" in name or "fc2" in name):
            value.zero_()
