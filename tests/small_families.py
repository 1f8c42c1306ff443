"""Folders of the transformer families with random weights, small enough to build in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from small_models import CONTEXT, LATENT, _text_config, _write_tokenizer, build_sd_folder, build_xl_folder

T5_WIDTH = 40  # and Gemma's
GEMMA = "GemmaTokenizerFast"


def _write_t5(folder: Path, part: str, tokenizer: str) -> None:
    """A T5 encoder and a tokenizer of letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    words = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    made = Tokenizer(models.Unigram([(word, -float(i > 2)) for i, word in enumerate(words)], unk_id=2))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(
        tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0, model_max_length=512
    ).save_pretrained(str(folder / tokenizer))
    config = T5Config(
        vocab_size=len(words) + 4,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder / part, safe_serialization=True)


def _write_clip(folder: Path, number: str, projected: bool = True, width: int = 16) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    size = _write_tokenizer(folder / f"tokenizer{number}", CONTEXT)
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = _text_config(size, width, CONTEXT, projection_dim=12, num_hidden_layers=2)
    kind(config).save_pretrained(folder / f"text_encoder{number}", safe_serialization=True)


def _write_vae(folder: Path, channels: int, **more: Any) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4,
        sample_size=2 * LATENT, use_quant_conv=False, use_post_quant_conv=False, **more,
    ).save_pretrained(folder / "vae", safe_serialization=True)  # fmt: skip


def _write_index(folder: Path, pipeline: str, scheduler: str, network: str, encoders: tuple[str, ...]) -> None:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.32.0"}
    index |= {"scheduler": ["diffusers", scheduler], "vae": ["diffusers", "AutoencoderKL"]}
    index["transformer"] = ["diffusers", network]
    for i, kind in enumerate(encoders):
        number = "" if i == 0 else f"_{i + 1}"
        index[f"text_encoder{number}"] = ["transformers", kind]
        index[f"tokenizer{number}"] = ["transformers", "T5TokenizerFast" if kind[0] == "T" else "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def build_sd3(folder: Path, **more: Any) -> None:
    """Stable Diffusion 3: two CLIP encoders and T5. more: of the transformer."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    _write_clip(folder, "")
    _write_clip(folder, "_2")
    _write_t5(folder, "text_encoder_3", "tokenizer_3")
    _write_vae(folder, 4, scaling_factor=1.5, shift_factor=0.06)
    SD3Transformer2DModel(
        sample_size=LATENT, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=T5_WIDTH, caption_projection_dim=16, pooled_projection_dim=24,
        pos_embed_max_size=8, **more,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    clip = "CLIPTextModelWithProjection"
    _write_index(
        folder, "StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", "SD3Transformer2DModel",
        (clip, clip, "T5EncoderModel"),
    )  # fmt: skip


def build_sd35(folder: Path) -> None:
    """Stable Diffusion 3.5: normalized queries and keys, and a second attention in some layers."""
    build_sd3(folder, qk_norm="rms_norm", dual_attention_layers=(0,))


def build_flux(folder: Path) -> None:
    """FLUX.1-dev: CLIP's pooled text and T5's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    _write_clip(folder, "", projected=False)
    _write_t5(folder, "text_encoder_2", "tokenizer_2")
    _write_vae(folder, 4, scaling_factor=0.36, shift_factor=0.12)
    FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=T5_WIDTH, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    _write_index(
        folder, "FluxPipeline", "FlowMatchEulerDiscreteScheduler", "FluxTransformer2DModel",
        ("CLIPTextModel", "T5EncoderModel"),
    )  # fmt: skip


def build_pixart(folder: Path, pipeline: str = "PixArtSigmaPipeline", sized: bool = False) -> None:
    """PixArt: T5 alone, and a learned variance."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    _write_t5(folder, "text_encoder", "tokenizer")
    _write_vae(folder, 4, scaling_factor=0.13)
    PixArtTransformer2DModel(
        sample_size=128 if sized else LATENT, patch_size=16 if sized else 2, in_channels=4, out_channels=8,
        num_layers=1, attention_head_dim=8, num_attention_heads=3, cross_attention_dim=24,
        caption_channels=T5_WIDTH, norm_num_groups=4, use_additional_conditions=sized,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    DPMSolverMultistepScheduler(solver_order=2).save_pretrained(folder / "scheduler")
    _write_index(
        folder, pipeline, "DPMSolverMultistepScheduler", "PixArtTransformer2DModel", ("T5EncoderModel",)
    )  # fmt: skip


def build_pixart_alpha(folder: Path) -> None:
    """PixArt-alpha at 1024, whose network is given the size."""
    build_pixart(folder, "PixArtAlphaPipeline", sized=True)


def _write_gemma(folder: Path) -> None:
    """A Gemma 2 encoder and a tokenizer of letters."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *map(chr, range(33, 127))]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = GemmaTokenizerFast(vocab=vocab, merges=[], model_max_length=2048)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=T5_WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma2Model(config).save_pretrained(folder / "text_encoder", safe_serialization=True)


def build_sana(folder: Path) -> None:
    """SANA: Gemma's text, an encoder without noise, and flow matching in a solver for diffusion."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel

    _write_gemma(folder)
    AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    ).save_pretrained(folder / "vae", safe_serialization=True)  # fmt: skip
    SanaTransformer2DModel(
        sample_size=2 * LATENT, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=T5_WIDTH,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    _write_index(folder, "SanaPipeline", "DPMSolverMultistepScheduler", "SanaTransformer2DModel", ("Gemma2Model",))
    _edit(folder / "model_index.json", vae=["diffusers", "AutoencoderDC"], tokenizer=["transformers", GEMMA])


def build_deepfloyd(folder: Path) -> None:
    """DeepFloyd IF, stage I: pixels, T5, and a learned variance."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    _write_t5(folder, "text_encoder", "tokenizer")
    UNet2DConditionModel(
        sample_size=2 * LATENT, in_channels=3, out_channels=6, cross_attention_dim=24, encoder_hid_dim=T5_WIDTH,
        addition_embed_type="text", addition_embed_type_num_heads=2, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), layers_per_block=1,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=4, act_fn="gelu",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
    ).save_pretrained(folder / "unet", safe_serialization=True)  # fmt: skip
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", thresholding=True, variance_type="learned_range").save_pretrained(
        folder / "scheduler"
    )
    nothing = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"), (None, None))
    index = {"_class_name": "IFPipeline", "scheduler": ["diffusers", "DDPMScheduler"], **nothing}
    index |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _edit(file: Path, **more: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}, indent=2))


def build_sd(folder: Path) -> None:
    """Stable Diffusion 1 and 2."""
    folder.rmdir()
    build_sd_folder(folder)


def build_xl(folder: Path) -> None:
    """Stable Diffusion XL."""
    folder.rmdir()
    build_xl_folder(folder)


def build_playground(folder: Path) -> None:
    """Playground 2.5: Stable Diffusion XL with EDM, and a VAE with mean and deviation."""
    from diffusers import EDMEulerScheduler

    build_xl(folder)
    scheduler = EDMEulerScheduler()
    scheduler.save_pretrained(folder / "scheduler")
    means, deviations = [0.5, -0.25, 0.1, 1.0], [2.0, 0.5, 1.5, 3.0]
    values = {"latents_mean": means, "latents_std": deviations}
    _edit(folder / "vae" / "config.json", **values)
    _edit(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])


BUILDERS = {
    "Stable Diffusion 1, 2": build_sd, "Stable Diffusion XL": build_xl, "Playground 2.5": build_playground,
    "Stable Diffusion 3": build_sd3, "Stable Diffusion 3.5": build_sd35, "FLUX.1": build_flux,
    "PixArt-sigma": build_pixart, "PixArt-alpha": build_pixart_alpha, "SANA": build_sana,
    "DeepFloyd IF": build_deepfloyd,
}  # fmt: skip


def build_family(name: str, folder: Path) -> Path:
    """The folder of a family's model, seed 0; every parameter is random, those too that a new network has at zero."""
    from safetensors.torch import load_file, save_file

    state = torch.get_rng_state()
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    BUILDERS[name](folder)
    for file in folder.glob("transformer/*.safetensors"):
        weights = load_file(file)
        weights = {key: value if value.any() else 0.2 * torch.randn_like(value) for key, value in weights.items()}
        save_file(weights, file, metadata={"format": "pt"})
    torch.set_rng_state(state)
    return folder
