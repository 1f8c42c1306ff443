"""threestudio's guidance types, and what the extension threestudio-carv has in their place. No torch is imported here.

A counterpart has every option of its stock type, and CARV's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SD15, SD21_BASE, SD21 = (
    "runwayml/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1",
)


@dataclass(frozen=True)
class Counterpart:
    """The extension's type in place of a stock one.

    name: as it is registered.
    models: options that name a model, and their defaults.
    num_draws: K where the configuration says nothing.
    """

    name: str
    models: dict[str, str] = field(default_factory=dict)
    num_draws: int = 4


MODEL = "pretrained_model_name_or_path"
COUNTERPARTS = {
    "stable-diffusion-guidance": Counterpart("carv-stable-diffusion-guidance", {MODEL: SD15}),
    "zero123-guidance": Counterpart("carv-zero123-guidance"),
    "stable-zero123-guidance": Counterpart("carv-stable-zero123-guidance"),
    "zero123-unified-guidance": Counterpart("carv-zero123-unified-guidance", {MODEL: "bennyguo/zero123-diffusers"}),
    "stable-diffusion-vsd-guidance": Counterpart(
        "carv-vsd-guidance", {MODEL: SD21_BASE, "pretrained_model_name_or_path_lora": SD21}
    ),
    "mvdream-multiview-diffusion-guidance": Counterpart("carv-mvdream-multiview-diffusion-guidance"),
    "deep-floyd-guidance": Counterpart("carv-deep-floyd-guidance", {MODEL: "DeepFloyd/IF-I-XL-v1.0"}),
    "stable-diffusion-controlnet-guidance": Counterpart(
        "carv-stable-diffusion-controlnet-guidance", {MODEL: "SG161222/Realistic_Vision_V2.0"}
    ),
    "stable-diffusion-instructpix2pix-guidance": Counterpart(
        "carv-stable-diffusion-instructpix2pix-guidance", {"ip2p_name_or_path": "timbrooks/instruct-pix2pix"}
    ),
    "stable-diffusion-unified-guidance": Counterpart("carv-stable-diffusion-unified-guidance", {MODEL: SD15}),
    "stable-diffusion-sdi-guidance": Counterpart("carv-stable-diffusion-sdi-guidance", {MODEL: SD21_BASE}),
}
"""By the stock type's name."""

NEW = ("carv-stable-diffusion-xl-guidance",)
"""Types of the extension that threestudio has no stock type for."""

PROMPT_PROCESSORS = {
    "stable-diffusion-prompt-processor": "carv-stable-diffusion-prompt-processor",
    "deep-floyd-prompt-processor": "carv-deep-floyd-prompt-processor",
}
"""The extension's prompt processors, needed where the model is built into carv_3d."""

OUTDATED = ("deep-floyd-prompt-processor",)
"""Prompt processors that run on no current transformers, and are always replaced."""

MIXIN = "carv-checkpoint"
"""Of the system: it keeps the guidance's state in threestudio's checkpoints."""
