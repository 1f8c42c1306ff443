"""Which models there are, by what their folders hold; each family has a teacher of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODEL = "carv-tiny"
_TINY = Path(__file__).parents[1] / "tiny"
BUILT_IN = {DEFAULT_MODEL: _TINY / "weights", "carv-tiny-128": _TINY / "weights_128"}


@dataclass(frozen=True)
class Family:
    """Models that one teacher reads.

    Attributes:
        classes: of each part with weights, what model_index.json names for it; "unet" or "transformer" is the network.
            Without a "vae" the latents are the pixels.
        tokenizers: the folders of tokenizers, with their classes in transformers.
        addition_embed_types: what the UNet may name for more than cross-attention ("text" pools the same text).
        use: what loads it, for the sentence that a model of another family gets.
        optional: parts that may be null.
        packed: latents that the network takes as one, side by side in its channels (those of an image among them).
    more: folders of small files that are read as well.
        half: the half precision that it is run in, a name in torch.
    task: a word in the name of its pipeline, of models that need more than a prompt.
    text_widths: keys of the network's configuration, each with the sum of keys of text encoders that it must be.
    """

    name: str
    classes: dict[str, str]
    tokenizers: dict[str, str]
    use: str
    addition_embed_types: tuple[str | None, ...] = (None, "text")
    optional: tuple[str, ...] = ()
    packed: int = 1
    half: str = "float16"
    more: tuple[str, ...] = ()
    task: str | None = None
    text_widths: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    @property
    def network(self) -> str:
        """The part that denoises."""
        return "unet" if "unet" in self.classes else "transformer"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the folders that hold one."""
        return tuple(part for part in self.classes if part.startswith("text_encoder"))

    @property
    def components(self) -> tuple[str, ...]:
        """The parts that are used; a safety checker or feature extractor is left alone."""
        return (*self.classes, *self.tokenizers, *self.more, "scheduler")


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x or 2.x",
    classes={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
    tokenizers={"tokenizer": "CLIPTokenizer"},
    use="StableDiffusionTeacher, in threestudio carv-stable-diffusion-guidance with its prompt processor",
)
STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    classes={**STABLE_DIFFUSION.classes, "text_encoder_2": "CLIPTextModelWithProjection"},
    tokenizers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
    use="StableDiffusionXLTeacher, in threestudio carv-stable-diffusion-xl-guidance with "
    "carv-stable-diffusion-xl-prompt-processor",
    addition_embed_types=("text_time",),
)
STABLE_DIFFUSION_3 = Family(
    name="Stable Diffusion 3 or 3.5",
    classes={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    tokenizers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5TokenizerFast"},
    use="load_teacher or StableDiffusion3Teacher",
    optional=("text_encoder_3", "tokenizer_3"),
    text_widths=(
        ("joint_attention_dim", (("text_encoder_3", "d_model"),)),
        ("pooled_projection_dim", (("text_encoder", "projection_dim"), ("text_encoder_2", "projection_dim"))),
    ),
    half="bfloat16",
)
FLUX = Family(
    name="FLUX.1",
    classes={
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    tokenizers={"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"},
    use="load_teacher or FluxTeacher",
    packed=4,
    text_widths=(
        ("joint_attention_dim", (("text_encoder_2", "d_model"),)),
        ("pooled_projection_dim", (("text_encoder", "hidden_size"),)),
    ),
    half="bfloat16",
)
PIXART = Family(
    name="PixArt-alpha or PixArt-sigma",
    classes={"transformer": "PixArtTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "T5EncoderModel"},
    tokenizers={"tokenizer": "T5TokenizerFast"},
    use="load_teacher or PixArtTeacher",
    text_widths=(("caption_channels", (("text_encoder", "d_model"),)),),
    half="bfloat16",
)
SANA = Family(
    name="SANA",
    classes={"transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC", "text_encoder": "Gemma2Model"},
    tokenizers={"tokenizer": "GemmaTokenizerFast"},
    use="load_teacher or SanaTeacher",
    text_widths=(("caption_channels", (("text_encoder", "hidden_size"),)),),
    half="bfloat16",
)
DEEPFLOYD_IF = Family(
    name="DeepFloyd IF, stage I",
    classes={"unet": "UNet2DConditionModel", "text_encoder": "T5EncoderModel"},
    tokenizers={"tokenizer": "T5TokenizerFast"},
    use="load_teacher or DeepFloydTeacher, in threestudio carv-deep-floyd-guidance with "
    "carv-deep-floyd-prompt-processor",
    addition_embed_types=("text",),
    text_widths=(("encoder_hid_dim", (("text_encoder", "d_model"),)),),
)
INSTRUCT_PIX2PIX = Family(
    name="InstructPix2Pix",
    classes=STABLE_DIFFUSION.classes,
    tokenizers=STABLE_DIFFUSION.tokenizers,
    use="InstructPix2PixTeacher, in threestudio carv-stable-diffusion-instructpix2pix-guidance",
    task="InstructPix2Pix",
    packed=2,
)
"""Not among FAMILIES: it edits images, and follows no prompt from pure noise."""
FAMILIES = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_3, FLUX, PIXART, SANA, DEEPFLOYD_IF)
OLD_NAMES = {"Transformer2DModel": "PixArtTransformer2DModel"}  # of a class, as folders of before name it

ZERO123 = Family(
    name="Zero123 in diffusers' format",
    classes={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "image_encoder": "CLIPVisionModelWithProjection",
        "clip_camera_projection": "CLIPCameraProjection",
    },
    tokenizers={},
    use="Zero123DiffusersTeacher, in threestudio carv-zero123-unified-guidance",
    packed=2,
    more=("feature_extractor",),
)
"""Apart from FAMILIES: it takes an image and no text."""
