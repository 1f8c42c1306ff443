"""What callers give a teacher: refused in one sentence where it cannot be meant."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from carv_3d.core.arguments import described, fits
from carv_3d.core.checks import check_numbers
from carv_3d.errors import CarvError


def check_images(images: Any, factor: int = 1) -> None:
    """CarvError unless these are images (B, 3, H, W), whose sides are multiples of `factor`."""
    check_numbers("images", images, "(B, 3, H, W)")
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape or any(n % factor for n in images.shape[2:]):
        sides = f" with sides that are multiples of {factor}" if factor > 1 else ""
        raise CarvError(f"encode takes images (B, 3, H, W){sides}, not {tuple(images.shape)}.")


def check_latents(latents: Any, channels: int) -> None:
    """CarvError unless these are latents (B, channels, h, w)."""
    check_numbers("latents", latents, f"(B, {channels}, h, w)")
    if latents.dim() != 4 or latents.shape[1] != channels or 0 in latents.shape:
        raise CarvError(f"decode takes latents (B, {channels}, h, w), not {tuple(latents.shape)}.")


def placement(module: Any) -> frozenset[str]:
    """The types and places of a network's or a VAE's weights, several where some layers are kept in float32."""
    weights = module.parameters() if hasattr(module, "parameters") else ()
    return frozenset(f"{weight.dtype} on {weight.device}" for weight in weights)


def check_as_made(module: Any, made: frozenset[str], name: str) -> None:
    """CarvError where a module is no longer what a teacher has taken: its weights have another type or place.

    Args:
        module: network or VAE; one that accelerate moves about is left out.
        made: its `placement` then.
        name: for the message.
    """
    changed = placement(module) - made
    if changed and not hasattr(module, "_hf_hook"):
        raise CarvError(
            f"{name} has weights of {min(changed)}, and {' and '.join(sorted(made))} when the teacher was made: put "
            "them back, or make the teacher of the module as it is now."
        )


def check_samples(z_t: Any, t: Any, text_emb: Any) -> None:
    """CarvError unless these go together: z_t (N, C, h, w), t (N,) or (1,), and text_emb (N, L, D)."""
    check_numbers("z_t", z_t, "(N, C, h, w)")
    check_numbers("text_emb", text_emb, "(N, L, D)")
    if not fits(t, Tensor):
        raise CarvError(f"t is {described(t)}; it must be a torch tensor (N,).")
    N = len(z_t) if z_t.dim() == 4 else 0
    if N == 0 or 0 in z_t.shape or t.shape not in ((N,), (1,)) or text_emb.dim() != 3 or len(text_emb) != N:
        shapes = f"z_t {tuple(z_t.shape)}, t {tuple(t.shape)} and text_emb {tuple(text_emb.shape)}"
        raise CarvError(f"{shapes} do not fit; they must be (N, C, h, w), (N,) and (N, L, D).")
