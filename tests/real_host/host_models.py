"""Tiny random models and data for any configuration of threestudio, and the words key=value that name them.

A model is built once, in a folder of its own, when a configuration asks for it. What it asks for goes by the type of
the guidance or prompt processor, since the names in the stock files are those of models on the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from carv_3d.io.structured import look_up

PROMPT = "a red mug"
LETTERS = 60
"""Of a prompt, at most: the tiny tokenizer reads letters, and 77 of them with what begins and ends a text."""


def _stable_diffusion(folder: Path) -> None:
    from small_models import build_sd_folder

    build_sd_folder(folder, latent=64, context=77, levels=4)


def _deep_floyd(folder: Path) -> None:
    from small_families import build_family

    build_family("DeepFloyd IF", folder)


def _pix2pix(folder: Path) -> None:
    from small_editing import build_pix2pix

    build_pix2pix(folder, context=77)


def _controlnet(folder: Path) -> None:
    from small_editing import build_controlnet

    build_controlnet(folder)


def _zero123(folder: Path) -> None:
    import ldm_tiny

    ldm_tiny.install()
    ldm_tiny.write(folder)


def _zero123_unified(folder: Path) -> None:
    from zero123_models import build_zero123_folder

    build_zero123_folder(folder)


def _mvdream(folder: Path) -> None:
    import mvdream_tiny

    mvdream_tiny.write(folder)


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "stable-diffusion": _stable_diffusion, "deep-floyd": _deep_floyd, "zero123": _zero123,
    "zero123-unified": _zero123_unified, "pix2pix": _pix2pix, "controlnet": _controlnet,
    "mvdream": _mvdream,
}  # fmt: skip
"""By the name of a folder; a builder makes that folder."""
LDM = {"pretrained_model_name_or_path": "zero123/model.ckpt", "pretrained_config": "zero123/model.yaml"}
MODELS: dict[str, dict[str, str]] = {
    "stable-diffusion-prompt-processor": {"pretrained_model_name_or_path": "stable-diffusion"},
    "stable-diffusion-guidance": {"pretrained_model_name_or_path": "stable-diffusion"},
    "stable-diffusion-vsd-guidance": dict.fromkeys(
        ("pretrained_model_name_or_path", "pretrained_model_name_or_path_lora"), "stable-diffusion"
    ),
    "deep-floyd-prompt-processor": {"pretrained_model_name_or_path": "deep-floyd"},
    "deep-floyd-guidance": {"pretrained_model_name_or_path": "deep-floyd"},
    "stable-diffusion-controlnet-guidance": dict.fromkeys(
        ("pretrained_model_name_or_path", "ddim_scheduler_name_or_path"), "stable-diffusion"
    ),
    "stable-diffusion-instructpix2pix-guidance": dict.fromkeys(
        ("ip2p_name_or_path", "ddim_scheduler_name_or_path"), "pix2pix"
    ),
    "zero123-guidance": LDM,
    "stable-zero123-guidance": LDM,
    "zero123-unified-guidance": {"pretrained_model_name_or_path": "zero123-unified"},
    "mvdream-multiview-diffusion-guidance": {"ckpt_path": "mvdream/model.pt"},
    "stable-diffusion-sdi-guidance": {"pretrained_model_name_or_path": "stable-diffusion"},
    "stable-diffusion-unified-guidance": dict.fromkeys(
        ("pretrained_model_name_or_path", "vsd_phi_model_name_or_path"), "stable-diffusion"
    ),
}
"""By stock type: options that name a model, and the model; an option without a default is set where it is given."""
IMAGE = "load/images/hamburger_rgba.png"
SHAPE = "load/shapes/teddy.obj"


def fitted(config: Mapping[str, Any], models: Path) -> list[str]:
    """Words that name models, and data for what the configuration leaves open (`???`)."""
    return [*_models(config, models), *_data(config, models)]


def for_ours(config: Mapping[str, Any], models: Path) -> list[str]:
    """Words for options that the counterparts have and the stock types have not."""
    if config["system"].get("guidance_type") != "stable-diffusion-controlnet-guidance":
        return []
    folder = built(models, "controlnet")
    return [f"system.guidance.controlnet_name_or_path={folder}", "system.guidance.control_type=canny"]


def built(models: Path, model: str) -> Path:
    """The path of a model, or of a file in its folder, which is made where it is not there."""
    folder = models / model.partition("/")[0]
    if not folder.exists():
        models.mkdir(parents=True, exist_ok=True)
        BUILDERS[folder.name](folder)
    return models / model


def without_vgg() -> None:
    """Has the editing systems compare pixels, where they compare features of a network that torchvision downloads."""
    import threestudio
    import torch

    class Perceptual:
        def __init__(self, cfg: Any = None) -> None:
            self.cfg = cfg

        def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    threestudio.__modules__["perceptual-loss"] = Perceptual


def _models(config: Mapping[str, Any], models: Path) -> Iterator[str]:
    system = config["system"]
    for key, kind in system.items():
        if not str(key).endswith("_type") or not ("guidance" in str(kind) or "prompt-processor" in str(kind)):
            continue
        group = str(key).removesuffix("_type")
        given = system.get(group) or {}
        for option, model in MODELS.get(str(kind), {}).items():
            if option == "vsd_phi_model_name_or_path" and given.get(option) is None:
                continue
            yield f"system.{group}.{option}={built(models, model)}"
        if str(kind).startswith("mvdream"):
            yield f"system.{group}.image_size=16"
        if "guidance" in str(kind):
            yield f"system.{group}.half_precision_weights=false"
        elif not str(kind).startswith("dummy"):
            yield f"system.{group}.spawn=false"


def _data(config: Mapping[str, Any], models: Path) -> Iterator[str]:
    if not str(config["system"].get("prompt_processor_type")).startswith("dummy"):
        yield f"system.prompt_processor.prompt={json.dumps(PROMPT)}"
    if len(str(look_up(config, "system.prompt_processor.negative_prompt") or "")) > LETTERS:
        yield "system.prompt_processor.negative_prompt=bad"
    if look_up(config, "data.image_path") == "???":
        yield f"data.image_path={IMAGE}"
    if look_up(config, "system.guide_shape") == "???":
        yield f"system.guide_shape={SHAPE}"
    if look_up(config, "data.dataroot") == "???":
        yield f"data.dataroot={_views(models.parent / 'views')}"
    if look_up(config, "system.weights") == "???":
        yield f"system.weights={_no_weights(models.parent / 'weights.ckpt')}"
    if look_up(config, "system.geometry_convert_from") == "???":
        yield f"system.geometry_convert_from={_coarse(models.parent / 'coarse', config)}"


def _views(folder: Path) -> Path:
    """Four images of 128 x 128 with their cameras around the origin, as nerfstudio writes them."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    lens = {"w": 128, "h": 128, "fl_x": 128.0, "fl_y": 128.0, "cx": 64.0, "cy": 64.0}
    frames = []
    for i, angle in enumerate(np.arange(4) * np.pi / 2):
        pixels = np.random.default_rng(i).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        backward = np.array([np.sin(angle), np.cos(angle), 0.0])
        right = np.array([np.cos(angle), -np.sin(angle), 0.0])
        camera = np.eye(4)
        camera[:3] = np.stack([right, np.cross(backward, right), backward, 2 * backward], 1)
        frames.append({"file_path": f"{i}.png", "transform_matrix": camera.tolist(), **lens})
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", "frames": frames, **lens}))
    return folder


def _no_weights(file: Path) -> Path:
    """A checkpoint that changes nothing, for a stage that begins from another."""
    import torch

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 0, "global_step": 0, "state_dict": {}}, file)
    return file


def _coarse(folder: Path, config: Mapping[str, Any]) -> Path:
    """What a coarse stage leaves for a fine one: an implicit volume in a checkpoint, and its configuration.

    Its networks are those of the fine stage, which may inherit them.
    """
    import threestudio
    import torch
    from omegaconf import OmegaConf

    encoding = {"otype": "ProgressiveBandFrequency", "n_frequencies": 4}
    geometry = {"radius": 1.0, "normal_type": "analytic", "density_bias": "blob_magic3d", "density_blob_scale": 40.0,
                "density_activation": "softplus", "pos_encoding_config": encoding, "isosurface_method": "mt",
                "isosurface_resolution": 32}  # fmt: skip
    fine = config["system"].get("geometry") or {}
    geometry |= {name: fine[name] for name in ("n_feature_dims", "mlp_network_config") if name in fine}
    folder = folder / hashlib.sha256(json.dumps(geometry).encode()).hexdigest()[:8]
    checkpoint = folder / "ckpts" / "last.ckpt"
    if not checkpoint.exists():
        for part in ("ckpts", "configs"):
            (folder / part).mkdir(parents=True)
        volume = threestudio.find("implicit-volume")(OmegaConf.create(geometry))
        weights = {f"geometry.{name}": value for name, value in volume.state_dict().items()}
        torch.save({"epoch": 0, "global_step": 0, "state_dict": weights}, checkpoint)
        coarse: dict[str, Any] = {"tag": "coarse", "use_timestamp": False}
        coarse["system"] = {"geometry_type": "implicit-volume", "geometry": geometry}
        OmegaConf.save(OmegaConf.create(coarse), folder / "configs" / "parsed.yaml")
    return checkpoint
