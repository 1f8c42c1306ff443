"""Which models there are, by what their folders hold; each family has a teacher of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODEL = "carv-tiny"
BUILT_IN = {DEFAULT_MODEL: Path(__file__).parents[1] / "tiny" / "weights"}


@dataclass(frozen=True)
class Family:
    """Models that one teacher reads.

    classes: of each part with weights, what model_index.json names for it.
    tokenizers: the folders of tokenizers.
    addition_embed_types: what the UNet's config may name for more than cross-attention ("text" pools the same text).
    use: what loads it, for the sentence that a model of another family gets.
    """

    name: str
    classes: dict[str, str]
    tokenizers: tuple[str, ...]
    use: str
    addition_embed_types: tuple[str | None, ...] = (None, "text")

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the folders that hold one."""
        return tuple(part for part in self.classes if part.startswith("text_encoder"))

    @property
    def components(self) -> tuple[str, ...]:
        """The parts that are used; a safety checker or feature extractor is left alone."""
        return (*self.classes, *self.tokenizers, "scheduler")


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x or 2.x",
    classes={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
    tokenizers=("tokenizer",),
    use="StableDiffusionTeacher, in threestudio carv-stable-diffusion-guidance with its prompt processor",
)
STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    classes={**STABLE_DIFFUSION.classes, "text_encoder_2": "CLIPTextModelWithProjection"},
    tokenizers=("tokenizer", "tokenizer_2"),
    use="StableDiffusionXLTeacher, in threestudio carv-stable-diffusion-xl-guidance with "
    "carv-stable-diffusion-xl-prompt-processor",
    addition_embed_types=("text_time",),
)
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)
