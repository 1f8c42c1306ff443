"""Which parameters gradients are taken of, by their names in diffusers' networks. Pure Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from carv_3d.core.options import Options, option

PARAMETERS: dict[str, Callable[[str], bool] | None] = {  # word -> which layers; None: every parameter of every kind
    "all": None,
    "layers": lambda name: True,
    "attention": lambda name: ".attn" in f".{name}",
    "cross-attention": lambda name: "attn2." in name,
    "text": lambda name: name.endswith(("attn2.to_k", "attn2.to_v")) or "add_embedding." in name,
    "lora": lambda name: "lora" in name,
}


@dataclass(frozen=True, kw_only=True)
class LayerOptions(Options):
    """Which parameters gradients are taken of, and how layers are weighed."""

    parameters: str = option("all", "Those that gradients are of.", choices=PARAMETERS)
    balance: bool = option(False, "Scale the layers' gradients to equal norms; parameters=all has no layers.")
