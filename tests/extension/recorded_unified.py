"""The recorded cases of threestudio's unified guidance, as in `recorded_parity.py`; `record_unified.py` writes them."""

from __future__ import annotations

from typing import Any

import recorded_parity as recorded

KIND = "stable-diffusion-unified-guidance"
TENSORS, FACTS = recorded.FOLDER / "unified.safetensors", recorded.FOLDER / "unified.json"
RETURNED = ("timesteps", "weights", "lambdas", "latents", "latents_1step_orig", "rgb", "rgb_1step_orig")
PLAIN = {"use_img_loss": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "dreamfusion": PLAIN,
    "uniform": {"weighting_strategy": "uniform", **PLAIN},
    "fantasia3d": {"weighting_strategy": "fantasia3d", **PLAIN},
    "clipped": {"grad_clip": 0.5, **PLAIN},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0, 0.9, 0.6, 1000], **PLAIN},
    "one prompt for all views": {"view_dependent_prompting": False, **PLAIN},
    "image loss": {},
    "image loss, clipped": {"grad_clip": 0.05},
    "square root": {"sqrt_anneal": True, "min_step_percent": 0.3, "trainer_max_steps": 800},
    "one step": {"return_rgb_1step_orig": True, **PLAIN},
}
CASES = [(name, "images") for name in OPTIONS]
CASES += [("dreamfusion", "latents"), ("dreamfusion", "perp-neg"), ("image loss", "perp-neg")]
"""(options, what is given)."""

VSD = {"guidance_type": "vsd", **PLAIN}
VSD_OPTIONS: dict[str, dict[str, Any]] = {
    "vsd, one model": VSD,
    "vsd": {**VSD, "phi": True},
    "vsd, scale of phi": {**VSD, "phi": True, "vsd_guidance_scale_phi": 2.5, "vsd_lora_cfg_training": True},
    "vsd, mvp": {**VSD, "phi": True, "vsd_camera_condition_type": "mvp"},
    "vsd, spherical": {**VSD, "vsd_camera_condition_type": "spherical", "vsd_guidance_scale_phi": 2.5},
    "vsd, no camera": {**VSD, "vsd_use_camera_condition": False, "vsd_guidance_scale_phi": 2.5},
    "vsd, three samples of phi": {**VSD, "phi": True, "vsd_lora_n_timestamp_samples": 3},
    "vsd, image loss": {**VSD, "phi": True, "use_img_loss": True},
}
"""phi: the LoRA is of the model with v-prediction. The image loss has one view: threestudio's is wrong for more."""


def renders(case: str) -> int:
    """How many renders a case of VSD has."""
    return 1 if "image loss" in case else 2


def options(case: str, v_model: str) -> dict[str, Any]:
    """The options of a case of VSD."""
    given = dict(VSD_OPTIONS[case])
    return {**given, "vsd_phi_model_name_or_path": v_model} if given.pop("phi", False) else given


def views(n: int) -> dict[str, Any]:
    """Of n renders, with matrices."""
    matrices = {name: recorded.fill(name, 2, 4, 4)[:n] for name in ("c2w", "mvp_mtx")}
    return {**recorded.views(n), **matrices}
