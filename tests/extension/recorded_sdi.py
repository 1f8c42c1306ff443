"""The recorded cases of threestudio's score distillation via inversion, as in `recorded_parity.py`; `record_sdi.py`."""

from __future__ import annotations

from typing import Any

import recorded_parity as recorded

KIND = "stable-diffusion-sdi-guidance"
TENSORS, FACTS = recorded.FOLDER / "sdi.safetensors", recorded.FOLDER / "sdi.json"
DRAWN = {"t_anneal": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "annealed": {},
    "annealed from a list": {"max_step_percent": [0, 0.9, 0.6, 1000], "min_step_percent": [0, 0.5, 0.1, 1000]},
    "drawn": DRAWN,
    "drawn low": {**DRAWN, "min_step_percent": 0.02, "max_step_percent": 0.03},
    "drawn high": {**DRAWN, "min_step_percent": 0.97},
    "without noise": {**DRAWN, "inversion_eta": 0.0},
    "much noise": {**DRAWN, "inversion_eta": 1.0},
    "three steps": {**DRAWN, "inversion_n_steps": 3},
    "no text in the inversion": {**DRAWN, "inversion_guidance_scale": -1.0},
    "text alone in the inversion": {**DRAWN, "inversion_guidance_scale": 0.0},
    "v-prediction": {**DRAWN, "v": True},
    "one prompt for all views": {**DRAWN, "view_dependent_prompting": False},
    "without inversion": {**DRAWN, "enable_sdi": False},
}
CASES = [(name, "images") for name in OPTIONS] + [("annealed", "perp-neg"), ("without inversion", "two images")]
"""(options, what is given). threestudio's inversion takes one render."""


def options(name: str, v_model: str) -> dict[str, Any]:
    """The options of a case."""
    given = dict(OPTIONS[name])
    return {**given, "pretrained_model_name_or_path": v_model} if given.pop("v", False) else given


def render(given: str) -> Any:
    """What a case gives as rendered."""
    return recorded.render("images" if given == "two images" else "perp-neg")


def noise(n: int) -> list[Any]:
    """What is drawn in a step, one after the other: for each step of the inversion, or once without one."""
    return [recorded.gaussian(f"eps {i}", n, 4, 8, 8) for i in range(12)]
