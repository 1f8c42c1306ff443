"""The recorded cases of threestudio's unified Zero123 guidance; `record_zero123_unified.py` writes them."""

from __future__ import annotations

from typing import Any

import recorded_parity as recorded

KIND = "zero123-unified-guidance"
TENSORS = recorded.FOLDER / "zero123_unified.safetensors"
FACTS = recorded.FOLDER / "zero123_unified.json"
RETURNED = ("timesteps", "weights", "lambdas", "latents", "latents_1step_orig", "rgb_1step_orig")
CAMERA = {"cond_elevation_deg": 20.0, "cond_azimuth_deg": -40.0, "cond_camera_distance": 1.5}

OPTIONS: dict[str, dict[str, Any]] = {
    "dreamfusion": {},
    "uniform": {"weighting_strategy": "uniform"},
    "fantasia3d": {"weighting_strategy": "fantasia3d"},
    "clipped": {"grad_clip": 0.5},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0, 0.9, 0.6, 1000]},
    "another camera": CAMERA,
    "one step": {"return_rgb_1step_orig": True},
}
CASES = [(name, "images") for name in OPTIONS] + [("dreamfusion", "latents")]
"""(options, what is given)."""

VSD = {"guidance_type": "vsd"}
VSD_OPTIONS: dict[str, dict[str, Any]] = {
    "vsd, one model": VSD,
    "vsd": {**VSD, "phi": True, **CAMERA},
    "vsd, scale of phi": {**VSD, "phi": True, "vsd_guidance_scale_phi": 2.5, "vsd_lora_cfg_training": True},
    "vsd, mvp": {**VSD, "vsd_camera_condition_type": "mvp", "weighting_strategy": "uniform"},
    "vsd, spherical": {**VSD, "vsd_camera_condition_type": "spherical", "vsd_guidance_scale_phi": 2.5},
    "vsd, no camera": {**VSD, "vsd_use_camera_condition": False},
}
"""phi: the LoRA is of another model. threestudio's own fails where it has several samples of phi, or a phi of
v-prediction, so there are no such cases."""


def options(case: str, phi: str) -> dict[str, Any]:
    """The options of a case of VSD."""
    given = dict(VSD_OPTIONS[case])
    return {**given, "vsd_phi_model_name_or_path": phi} if given.pop("phi", False) else given
