"""What memory a configuration needs at least: refused before the model is loaded where there is not so much."""

from __future__ import annotations

import torch

from carv_3d.core.memory import check_memory
from carv_3d.generate.config import Config
from carv_3d.scenes.fields import fastest_field

ADAM = 4  # copies of a parameter: itself, its gradient and two running means
FLOAT = 4  # bytes
SAMPLE = 40  # bytes of a ray's sample: 57 measured with fused, 125 with voxel, 620 with hash
LATTICE = 28  # bytes of a point of the mesh's lattice: its place, its density, and what masks it
FRAME = 30  # bytes of a pixel of the turntable: floats, their copies, and bytes for the films
FIX = "lower it, or take a machine with more"


def check_needs(config: Config, device: torch.device) -> None:
    """CarvError, with the bytes, where the scene, its renders or its outputs cannot be held in memory."""
    check_memory(_training(config, device), FIX, device)
    for part in _outputs(config):  # one comes after the other
        check_memory(part, FIX)


def _training(config: Config, device: torch.device) -> dict[str, int]:
    data, system = config.data, config.system
    field, renderer = system.geometry, system.renderer
    kind = fastest_field(device)[0] if system.geometry_type == "auto" else system.geometry_type
    if kind == "voxel":
        name, numbers = f"system.geometry.resolution = {field.resolution}", 4 * field.resolution**3
    else:
        name = f"system.geometry.log2_hashmap_size = {field.log2_hashmap_size}"
        levels = (min(edge**3, 2**field.log2_hashmap_size) for edge in field.level_resolutions)
        numbers = field.n_features_per_level * sum(levels)
    rays = data.batch_size * data.height * data.width
    samples = f"data.batch_size x height x width = {data.batch_size} x {data.height} x {data.width}"
    samples += f" rays of system.renderer.num_samples_per_ray = {renderer.num_samples_per_ray}"
    return {
        name: ADAM * FLOAT * numbers,
        samples: SAMPLE * rays * renderer.num_samples_per_ray,
        f"system.renderer.grid_resolution = {renderer.grid_resolution}": FLOAT * renderer.grid_resolution**3,
    }


def _outputs(config: Config) -> tuple[dict[str, int], dict[str, int]]:
    data, lattice = config.data, config.system.exporter.resolution
    frames = f"data.n_test_views x eval_height x eval_width = {data.n_test_views} x {data.eval_height} x "
    mesh = {f"system.exporter.resolution = {lattice}": LATTICE * lattice**3}
    turntable = {f"{frames}{data.eval_width}": FRAME * data.n_test_views * data.eval_height * data.eval_width}
    return mesh, turntable
