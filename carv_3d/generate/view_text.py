"""What the prompt becomes for each camera: the words of its side behind it, or Perp-Neg's mixture of sides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from carv_3d.guidance.cfg import Conditioning
from carv_3d.scenes.cameras import Cameras
from carv_3d.scenes.view_phrases import COARSE_PHRASES, FINE_PHRASES, OVERHEAD, shift_azimuth, view_phrase

if TYPE_CHECKING:
    from carv_3d.generate.config import PromptOptions

# threestudio's, of f(r) = a exp(-b r) + c (arXiv 2304.04968, section 3.3)
F_SIDE_BACK, F_FRONT_BEHIND = (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)  # threestudio: perp_neg_f_sb, perp_neg_f_fsb
F_FRONT_SIDE = (4.0, 0.5, -2.426)  # perp_neg_f_fs, perp_neg_f_sf


def view_text(teacher: Any, options: PromptOptions, cameras: Cameras, apart: bool = False) -> Conditioning:
    """The embeddings for R cameras, by their nominal elevation and azimuth.

    Args:
        teacher: its `text_embeddings` are used.
        options: the prompts.
        cameras: R of them.
        apart: whether the negative prompt is an embedding of its own, next to that of the empty prompt; otherwise it
            takes the empty prompt's place.

    Returns:
        text (R, L, D), uncond and negative (1, L, D); with Perp-Neg its embeddings (R, 2, L, D) and weights (R, 2), at
        most 0.
    """
    prompts = captions(options, cameras)
    uncond = teacher.text_embeddings(["" if apart else options.negative_prompt])
    negative = teacher.text_embeddings([options.negative_prompt]) if apart else None
    if options.use_perp_neg:
        return _perp_neg(teacher, options, _views(cameras), uncond)._replace(negative=negative)
    return Conditioning(teacher.text_embeddings(prompts), uncond, negative)


def captions(options: PromptOptions, cameras: Cameras) -> list[str]:
    """The prompt with the words of each camera's side; under Perp-Neg, which mixes sides, those of the nearest."""
    if not options.view_dependent_prompting:
        return [options.prompt] * len(cameras)
    return [f"{options.prompt}, {_phrase(options, *view)}" for view in _views(cameras)]


def fitted(teacher: Any, options: PromptOptions) -> PromptOptions:
    """The prompts, the positive one cut where the words of some view would not fit behind it.

    Otherwise those words would be cut off, and all cameras would have the same text.

    Args:
        teacher: whose text encoder reads so many tokens.
        options: the prompts.

    Returns:
        The options, with a shorter prompt or as they are.
    """
    cut = getattr(teacher, "shortened", None)  # a teacher of another's making may read any length
    if cut is None or not options.view_dependent_prompting:
        return options
    phrases = (*FINE_PHRASES, OVERHEAD) if options.fine_views else COARSE_PHRASES
    return replace(options, prompt=cut(options.prompt, [f", {phrase}" for phrase in phrases]))


def _views(cameras: Cameras) -> list[tuple[float, float]]:
    return list(zip(cameras.elevation.tolist(), cameras.azimuth.tolist()))


def _phrase(options: PromptOptions, elevation: float, azimuth: float) -> str:
    return view_phrase(
        elevation, azimuth, options.fine_views, options.overhead_threshold, options.front_threshold,
        options.back_threshold,
    )  # fmt: skip


def _perp_neg(teacher: Any, options: PromptOptions, views: list[tuple[float, float]], uncond: Tensor) -> Conditioning:
    """Perp-Neg's text between two sides and its two negatives, as threestudio mixes them by the azimuth."""
    phrases = [f"{options.prompt}, {phrase}" for phrase in COARSE_PHRASES]
    front, side, back, overhead = teacher.text_embeddings(phrases)
    text, negatives, weights = [], [], []
    for elevation, azimuth in views:
        turned = abs(shift_azimuth(azimuth)) / 90  # 0 in front, 1 at the side, 2 behind
        if _phrase(options, elevation, azimuth) == OVERHEAD:
            text.append(overhead)
            negatives.append(torch.stack([uncond[0], uncond[0]]))
            weights.append((0.0, 0.0))
        elif turned < 1:
            r = 1 - turned
            text.append(r * front + (1 - r) * side)
            negatives.append(torch.stack([front, side]))
            weights.append((-_decay(F_FRONT_SIDE, r), -_decay(F_FRONT_SIDE, 1 - r)))
        else:
            r = 2 - turned
            text.append(r * side + (1 - r) * back)
            negatives.append(torch.stack([side, front]))
            weights.append((-_decay(F_SIDE_BACK, r), -_decay(F_FRONT_BEHIND, r)))
    return Conditioning(torch.stack(text), uncond, None, torch.stack(negatives), torch.tensor(weights).to(uncond))


def _decay(of: tuple[float, float, float], r: float) -> float:
    a, b, c = of
    return a * math.exp(-b * r) + c
