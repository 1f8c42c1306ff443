"""A Zero123 in diffusers' format with random weights: a UNet of 8 channels, CLIP's image encoder, a projection."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_models import LATENT, UNET, build_sd_folder

WIDTH = 16
PARTS = ("unet", "vae", "image_encoder", "clip_camera_projection")


def build_zero123_folder(folder: Path, context: int = 24) -> Path:
    """Write the model: latents 8 x 8, images 16 x 16, an embedding of 16 numbers. context: as of `build_sd_folder`."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    build_sd_folder(folder, context=context)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNET, sample_size=LATENT, cross_attention_dim=WIDTH, in_channels=8)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, projection_dim=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        image_size=14, patch_size=7,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config)
    encoder.save_pretrained(folder / "image_encoder", safe_serialization=True)
    torch.set_rng_state(state)
    processor = {
        "crop_size": {"height": 14, "width": 14}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 14},
    }  # fmt: skip
    for part in ("feature_extractor", "clip_camera_projection"):
        (folder / part).mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))
    camera = {"_class_name": "CLIPCameraProjection", "additional_embeddings": 4, "embedding_dim": WIDTH}
    (folder / "clip_camera_projection" / "config.json").write_text(json.dumps(camera))
    weights = {"proj.weight": torch.eye(WIDTH, WIDTH + 4), "proj.bias": torch.zeros(WIDTH)}
    file = folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors"
    save_file(weights, file, {"format": "pt"})
    index = json.loads((folder / "model_index.json").read_text())
    index = {name: value for name, value in index.items() if name not in ("text_encoder", "tokenizer")}
    index |= {
        "_class_name": "Zero123Pipeline",
        "clip_camera_projection": ["zero123", "CLIPCameraProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_zero123_folder(folder: Path, prefix: str = "") -> Path:
    """The model with the weights of `recorded_parity.fill`; with a prefix its UNet has others."""
    import recorded_parity as recorded

    recorded.write_model(build_zero123_folder, folder)
    recorded.fill_weights(folder, ("image_encoder", "clip_camera_projection"))
    recorded.fill_weights(folder, ("unet",), prefix)
    return folder
