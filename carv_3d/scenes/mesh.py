"""From a radiance field to a closed, colored mesh in a file.

Density on a lattice -> level -> solid pieces without cavities -> marching cubes -> light smoothing ->
colors as a camera in front of each vertex would see them -> GLB.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import trimesh
from nerfacc.volrend import render_weight_from_density
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from carv_3d.core.options import LatticeOptions, option
from carv_3d.errors import CarvError
from carv_3d.scenes.fields import Field
from carv_3d.scenes.gltf import to_gltf_axes, write_glb

__all__ = ["MeshOptions", "choose_level", "extract_mesh", "mesh_from_volume", "save_mesh"]

Volume = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MeshOptions(LatticeOptions, defaults={"resolution": 96}):
    """How the mesh is made from the field."""

    level: float | Literal["auto"] = option("auto", "Density at the surface; auto: see `choose_level`.", above=0)
    min_component: float = option(0.02, "Pieces below this share of the whole volume are dropped.", least=0, below=1)
    smoothing: int = option(5, "Passes of Taubin's filter.", least=0, most=1000)
    longest_side: float = option(1.0, "Of the exported object, in meters.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution < 8:
            raise CarvError(f"resolution is {self.resolution}; a mesh needs a whole number from 8 to 1024.")


@torch.no_grad()
def density_volume(field: Field, resolution: int, chunk: int = 262144) -> Volume:
    """Densities (N, N, N) on the lattice over [-radius, radius]^3, zero outside the sphere."""
    device = next(field.parameters()).device
    axis = torch.linspace(-field.radius, field.radius, resolution, device=device)
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    sigma = torch.cat([field.density(part)[:, 0] for part in x.split(chunk)])
    sigma = torch.where(x.norm(dim=-1) < field.radius, sigma, torch.zeros_like(sigma))
    volume: Volume = sigma.view((resolution,) * 3).float().cpu().numpy()
    if not np.isfinite(volume).all():
        raise CarvError("the field holds densities that are not finite; lower the learning rate and retrain.")
    return volume


def choose_level(volume: Volume, radius: float, level: float | str = "auto") -> float:
    """The density at which the surface is drawn.

    "auto": the level whose solid has the silhouettes that renders show. Looking along each axis, a pixel
    belongs to the render's silhouette where half the light is stopped, `exp(-sum sigma dx) < 1/2`, and to
    the solid's where the largest density passes the level; the level equates the two areas. It stays
    between the density that stops half the light over 0.4 radii and half of the 99.5th percentile.

    Raises:
        CarvError: nothing, or everything, lies above the level.
    """
    axis = np.linspace(-1, 1, volume.shape[0], dtype=np.float32)
    r2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    inside = volume[r2 < 0.98]
    if level == "auto":
        pitch = 2 * radius / (volume.shape[0] - 1)
        opaque = sum(int((volume.sum(axis=i) * pitch > np.log(2)).sum()) for i in range(3))
        lowest = np.log(2) / (2 * radius)
        chosen = float(np.log(2) / (0.4 * radius))
        if opaque and (inside > 0.1 * lowest).any():
            peaks = np.sort(np.concatenate([volume.max(axis=i).ravel() for i in range(3)]))[::-1]
            below = peaks[min(opaque, len(peaks) - 1)]
            highest = 0.5 * np.percentile(inside[inside > 0.1 * lowest], 99.5)
            chosen = float(min(max(0.5 * (peaks[opaque - 1] + below), lowest), max(highest, lowest)))
    else:
        chosen = float(level)
    if not (inside > chosen).any():
        raise CarvError(
            f"the field is empty: no density above {chosen:.3g} (the largest is {inside.max():.3g}), so "
            "there is no mesh to write; train longer, weaken the sparsity terms, or set a lower mesh level."
        )
    if (inside > chosen).mean() > 0.98:
        raise CarvError(
            f"the field is full: nearly all of it is denser than {chosen:.3g}, so there is no surface to "
            "write; train longer, strengthen the sparsity terms, or set a higher mesh level."
        )
    return chosen


def _solid(volume: Volume, level: float, min_component: float) -> Volume:
    """`volume` with small pieces emptied and enclosed cavities filled; its border must be empty."""
    labels, n = ndimage.label(volume > level)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = 0
    keep = sizes >= min_component * sizes.sum()
    keep[sizes.argmax()] = True
    keep[0] = True  # air stays as it is
    volume = np.where(keep[labels], volume, np.float32(0))
    air, _ = ndimage.label(volume <= level)
    return np.where((air != 0) & (air != air[0, 0, 0]), np.float32(2 * level), volume)


def mesh_from_volume(
    volume: Volume, level: float, radius: float, min_component: float = 0.02, smoothing: int = 5
) -> trimesh.Trimesh:
    """A closed mesh, outward winding, of `volume` (N, N, N) > `level` on [-radius, radius]^3.

    Vertices are placed on the logarithm of the density, which is nearly linear across a soft surface,
    clipped to a factor of four either way, which puts a hard edge between its two lattice points.
    """
    pitch = 2 * radius / (volume.shape[0] - 1)
    mesh = trimesh.Trimesh()
    for nudge in (1.0, 1.003, 0.997, 1.01, 0.99):  # a lattice value right at the level pinches the surface
        at = level * nudge
        solid = _solid(np.pad(volume, 1), at, min_component)
        log_density = np.log(np.clip(solid / at, 0.25, 4.0))
        vertices, faces, _, _ = marching_cubes(log_density, 0.0, allow_degenerate=False)
        mesh = trimesh.Trimesh((vertices - 1) * pitch - radius, faces, process=True)
        if mesh.is_watertight:
            break
    else:
        trimesh.repair.fill_holes(mesh)
    trimesh.repair.fix_normals(mesh, multibody=True)
    if mesh.volume < 0:
        mesh.invert()
    if smoothing:
        trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=smoothing)
    return mesh


@torch.no_grad()
def surface_colors(
    field: Field, points: NDArray[Any], normals: NDArray[Any], n_samples: int = 24
) -> NDArray[np.float32]:
    """Colors (V, 3) in [0, 1] of what a camera looking along `-normals` sees at `points` (V, 3).

    A short ray from 2 to 20 hundredths of the radius below the surface, its samples weighted by
    `T alpha sigma` over their sum, those much thinner than the heaviest one left out: the visible part, and
    of it the dense part, so that neither a background nor the color of the air around it enters.
    """
    device = next(field.parameters()).device
    edges = torch.linspace(0.02, 0.2, n_samples + 1, device=device) * field.radius
    mids = 0.5 * (edges[1:] + edges[:-1])
    out = []
    for p, n in zip(
        torch.tensor(np.asarray(points), dtype=torch.float32).split(16384),
        torch.tensor(np.asarray(normals), dtype=torch.float32).split(16384),
    ):
        p, n = p.to(device), n.to(device)
        x = p[:, None] - mids[None, :, None] * n[:, None]
        sigma, rgb = field.density_and_color(x.reshape(-1, 3))
        sigma, rgb = sigma.view(len(p), -1), rgb.view(len(p), -1, 3)
        t0, t1 = edges[:-1].expand_as(sigma), edges[1:].expand_as(sigma)
        w, _, _ = render_weight_from_density(t0, t1, sigma)
        w = w * sigma + 1e-12
        solid = sigma.gather(1, w.argmax(dim=1, keepdim=True))
        w = w * (sigma >= 0.7 * solid)
        out.append(((w[..., None] * rgb).sum(dim=1) / w.sum(dim=1, keepdim=True)).float().cpu())
    colors: NDArray[np.float32] = torch.cat(out).numpy()
    return colors


def extract_mesh(
    field: Field, options: MeshOptions | None = None, log: Callable[[str], None] | None = None
) -> trimesh.Trimesh:
    """The field's surface as a closed mesh with vertex colors (sRGB), in world axes and units (z up).

    The level is kept in `mesh.metadata["level"]`.

    Raises:
        CarvError: the field is empty or full.
    """
    options = options or MeshOptions()
    volume = density_volume(field, options.resolution)
    level = choose_level(volume, field.radius, options.level)
    mesh = mesh_from_volume(volume, level, field.radius, options.min_component, options.smoothing)
    colors = surface_colors(field, mesh.vertices, mesh.vertex_normals)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
    mesh.vertex_attributes["color"] = colors
    mesh.metadata["level"] = level
    if log is not None:
        closed = "closed" if mesh.is_watertight else "NOT closed"
        log(f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces, {closed}, level {level:.3g}")
    return mesh


def save_mesh(
    mesh: trimesh.Trimesh,
    path: str | Path,
    longest_side: float = 1.0,
    extras: Mapping[str, Any] | None = None,
) -> Path:
    """Write `mesh` (from `extract_mesh`) to `path`, by its suffix.

    `.glb`: y up, the front (+x) turned to glTF's front (+z), the longest side `longest_side` meters, centered
    and standing on the ground plane y = 0, colors in linear light, a rough non-metallic material.
    `.ply`, `.obj`, `.stl`: world axes and units as they are (stl without colors).

    Raises:
        CarvError: another suffix.
    """
    path = Path(path)
    if path.suffix in (".ply", ".obj", ".stl"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mesh.export(path)
        return path
    if path.suffix != ".glb":
        raise CarvError(f"cannot write {path.name}: give a name that ends in .glb, .ply, .obj or .stl.")
    vertices = to_gltf_axes(np.asarray(mesh.vertices, dtype=np.float64))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    ground = np.array([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])
    vertices = (vertices - ground) * (longest_side / (high - low).max())
    normals = to_gltf_axes(np.asarray(mesh.vertex_normals))
    colors = mesh.vertex_attributes.get("color")
    if colors is None:
        colors = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0
    write_glb(path, vertices, np.asarray(mesh.faces), normals, colors, extras)
    return path
