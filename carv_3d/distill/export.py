"""The trained generator -> a StableDiffusionPipeline folder of stock parts, which any diffusers runs in one step.

No code of this package is needed to use it. DDIM with "trailing" timesteps asks the UNet at T - 1 alone, and with
`set_alpha_to_one` its one step ends at alpha = 1, sigma = 0: what it returns is exactly the clean prediction,
(z - sigma eps_hat) / alpha or alpha z - sigma v.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from carv_3d.errors import CarvError
from carv_3d.io.files import replaced_folder, write_atomic
from carv_3d.io.structured import read_text
from carv_3d.io.tensor_files import load_tensors, read_header
from carv_3d.report.page import asset_text
from carv_3d.teachers.loading import load_ddim
from carv_3d.teachers.model_folder import HALF, MEND, check_folder, read_json, weight_files

COPIED = ("vae", "text_encoder", "tokenizer")
PATHS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")  # where a part once lay
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
UNET_FILE = "diffusion_pytorch_model.safetensors"


def save_one_step(folder: Path, teacher_folder: Path, unet: nn.Module) -> None:
    """Write `unet` (the generator's, given t = T - 1) with the teacher's other parts to `folder`, whole or not at all.

    teacher_folder: the diffusers folder that the UNet was copied from; its weights are kept in the type that they have
    there. An earlier model at `folder` is replaced at once. No file names this machine.

    Raises:
        CarvError: the teacher is no whole Stable Diffusion, the UNet is not of its architecture, `folder` holds
            something else than a model or is the teacher's own, or cannot be written.
    """
    check_folder(teacher_folder)
    _check_place(folder, teacher_folder)
    dtype, shapes = _saved(teacher_folder)
    weights = {k: v.detach().cpu().to(dtype).contiguous() for k, v in unet.state_dict().items()}
    if {k: tuple(v.shape) for k, v in weights.items()} != shapes:
        raise CarvError(
            f"the UNet is not of the architecture of {teacher_folder / 'unet'}: "
            "name the teacher that it was copied from."
        )
    from safetensors.torch import save

    with replaced_folder(folder) as new:
        for part in COPIED:
            _copy_part(teacher_folder, new, part)
        (new / "unet").mkdir()
        _write_config(new / "unet" / "config.json", read_json(teacher_folder / "unet" / "config.json"))
        write_atomic(new / "unet" / UNET_FILE, save(weights, metadata={"format": "pt"}))
        one_step_scheduler(load_ddim(teacher_folder)).save_pretrained(new / "scheduler")
        _write_config(new / "model_index.json", _index(read_json(teacher_folder / "model_index.json")))
        write_atomic(new / "README.md", asset_text("one_step_card.md"))


def one_step_scheduler(teacher: Any) -> Any:
    """The DDIMScheduler of diffusers for one step at T - 1, on the betas and the prediction type of the teacher's own.

    teacher: a DDIMScheduler. What else it is set to (clipping, thresholds) would change the clean prediction.
    """
    from diffusers import DDIMScheduler

    kept = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
        "rescale_betas_zero_snr",
    )  # fmt: skip
    known = inspect.signature(DDIMScheduler.__init__).parameters
    return DDIMScheduler(
        **{k: teacher.config[k] for k in kept if k in known and k in teacher.config},
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        thresholding=False,
        steps_offset=1,  # trailing has none, but the pipeline rewrites a config that says otherwise
    )


def _check_place(folder: Path, teacher_folder: Path) -> None:
    if folder.exists() and folder.samefile(teacher_folder):
        raise CarvError(f"{folder} is the teacher itself: write the one-step generator to another folder.")
    if (
        folder.exists()
        and not (folder / "model_index.json").is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise CarvError(f"{folder} holds something else than a model: write the one-step generator to another folder.")


def _saved(teacher_folder: Path) -> tuple[torch.dtype, dict[str, tuple[int, ...]]]:
    """The type that the teacher's UNet is saved in, and the shape of each of its tensors."""
    dtype, shapes = torch.float32, dict[str, tuple[int, ...]]()
    for file in weight_files(teacher_folder, "unet"):
        if file.suffix == ".safetensors":
            heads = read_header(file, MEND)
            shapes.update({k: head.shape for k, head in heads.items()})
            dtype = TYPES.get(next(iter(heads.values())).dtype, torch.float32)
        else:
            tensors = load_tensors(file, MEND)
            shapes.update({k: tuple(v.shape) for k, v in tensors.items()})
            dtype = next(iter(tensors.values())).dtype
    return dtype, shapes


def _copy_part(source: Path, target: Path, part: str) -> None:
    """A part's small files, and of its weights the ones that are read."""
    (target / part).mkdir()
    expected = [] if part == "tokenizer" else weight_files(source, part)
    for file in expected[0].parent.glob(f"*{expected[0].suffix}.index*.json") if len(expected) > 1 else ():
        write_atomic(target / part / file.name.replace(HALF, ""), read_text(file).replace(HALF, ""))
    small = [f for f in (source / part).iterdir() if f.suffix in (".json", ".txt") and ".index." not in f.name]
    for file in (*expected, *small):
        if file.name in ("config.json", "tokenizer_config.json"):
            _write_config(target / part / file.name, read_json(file))
        else:
            shutil.copyfile(file, target / part / file.name.replace(HALF, ""))  # what a link of a hub's cache points to


def _index(teacher: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in teacher.items() if k in ("_diffusers_version", "text_encoder", "tokenizer", "unet", "vae")}
    return {
        "_class_name": "StableDiffusionPipeline", **kept, "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False,
    }  # fmt: skip


def _write_config(file: Path, config: dict[str, Any]) -> None:
    config = {k: v for k, v in config.items() if k not in PATHS}
    write_atomic(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
