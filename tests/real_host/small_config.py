"""Any configuration of threestudio, made small enough for a few steps on a CPU: words key=value for its launcher.

Renders of 16 x 16, one view a step where the system allows it, encodings that need no tiny-cuda-nn, and whatever a
configuration waits for (reference steps before the guidance, editing that begins later) from the first step on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SIZE = 16
SIDES = ("width", "height", "eval_width", "eval_height", "sample_width", "sample_height")
NUMBERS = {
    "resolution_milestones": "[]", "batch_size": "1", "eval_batch_size": "1", "n_val_views": "1", "n_test_views": "2",
    "isosurface_resolution": "32", "train_num_rays": "64", "max_num_frames": "2",
}  # fmt: skip
ENCODINGS = {"geometry": ("pos_encoding_config", 4), "background": ("dir_encoding_config", 3)}
ENCODED = {
    "implicit-volume": "geometry", "implicit-sdf": "geometry", "neural-environment-map-background": "background",
    "tetrahedra-sdf-grid": "geometry", "mvdream-neural-environment-map-background": "background",
}  # fmt: skip
CUDA = {"HashGrid", "ProgressiveBandHashGrid", "SphericalHarmonics"}
FROM_THE_START = {
    "system.freq.ref_only_steps": "-1", "system.start_editing_step": "-1", "system.per_editing_step": "1",
    "system.freq.guidance_eval": "0",
}  # fmt: skip


def small(config: Mapping[str, Any]) -> list[str]:
    """The words for a configuration as `OmegaConf.to_container(..., resolve=False)` gives it."""
    words = [f"{name}={SIZE}" for name, _ in _leaves(config.get("data", {}), "data") if _last(name) in SIDES]
    words += [
        f"{name}={NUMBERS[_last(name)]}"
        for part in ("data", "system")
        for name, _ in _leaves(config.get(part, {}), part)
        if _last(name) in NUMBERS
    ]
    if re.search(r"random-(multiview-)?camera", str(config.get("data_type"))):
        words += ["data.n_val_views=1", "data.n_test_views=2", f"data.eval_width={SIZE}", f"data.eval_height={SIZE}"]
    words += [f"data.batch_size={views}" for views in [config.get("data", {}).get("n_view")] if views]
    words += _encodings(config.get("system", {}))
    words += _rendering(config.get("system", {}))
    words += [
        f"{name}=0.01"  # progressive is a word of hash grids alone
        for name, value in _leaves(config.get("system", {}), "system")
        if _last(name) == "finite_difference_normal_eps" and value == "progressive"
    ]
    leaves = dict(_leaves(config, ""))
    words += [f"{name}={value}" for name, value in FROM_THE_START.items() if name in leaves]
    if leaves.get("system.optimizer.name") == "Adan":
        words.append("system.optimizer.args.max_grad_norm=0.0")  # it reads the first group, an encoding's: here empty
    if str(config.get("system_type")).startswith("control4d"):
        words.append("trainer.max_steps=6")  # its two optimizers are counted apart
    return [*dict.fromkeys(words), "trainer.precision=32", "trainer.num_sanity_val_steps=0"]


def _encodings(system: Mapping[str, Any]) -> Iterator[str]:
    """Bands of frequencies in place of hash grids and spherical harmonics, given or by default."""
    for name, value in _leaves(system, "system"):
        if _last(name) == "otype" and value in CUDA:
            group = name.removesuffix(".otype")
            yield f"{name}=ProgressiveBandFrequency"
            yield f"{group}.n_frequencies=4"
    for key, kind in system.items():
        section = ENCODED.get(str(kind)) if str(key).endswith("_type") else None
        if section and str(key) == f"{section}_type":
            encoding, bands = ENCODINGS[section]
            if encoding not in (system.get(section) or {}):
                yield f"system.{section}.{encoding}.otype=ProgressiveBandFrequency"
                yield f"system.{section}.{encoding}.n_frequencies={bands}"


def _rendering(system: Mapping[str, Any]) -> Iterator[str]:
    kind, renderer = str(system.get("renderer_type")), system.get("renderer") or {}
    if kind in ("nerf-volume-renderer", "neus-volume-renderer"):
        yield "system.renderer.num_samples_per_ray=24"
    if "base_renderer" in renderer or kind in ("patch-renderer", "gan-volume-renderer"):
        yield "system.renderer.base_renderer.num_samples_per_ray=24"
    if "patch_size" in renderer:
        yield "system.renderer.patch_size=8"
    if system.get("geometry_type") == "volume-grid":
        yield "system.geometry.grid_size=[16,16,16]"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _last(name: str) -> str:
    return name.rpartition(".")[2]
