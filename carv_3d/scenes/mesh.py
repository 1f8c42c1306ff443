"""From a radiance field to a closed, textured mesh in a file.

Density on a lattice -> level -> solid pieces without cavities -> marching cubes -> light smoothing -> fewer triangles
-> a texture with the colors that a camera in front of each point would see (`texture`) -> GLB or OBJ.

trimesh, scipy and scikit-image take seconds to import. Whoever reads a run's options needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.io.files import write_atomic
from carv_3d.scenes.fields import Field, LatticeOptions

if TYPE_CHECKING:
    import trimesh

__all__ = ["MeshOptions", "choose_level", "extract_mesh", "mesh_from_volume", "save_asset", "to_gltf_axes"]

Volume = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MeshOptions(LatticeOptions, defaults={"resolution": 128}):
    """How the mesh is made from the field."""

    level: float | Literal["auto"] = option(
        "auto", "Density at the surface; auto: see `choose_level`.", least=1e-6, most=1e6
    )
    min_component: float = option(0.02, "Pieces below this share of the whole volume are dropped.", least=0, below=1)
    smoothing: int = option(5, "Passes of Taubin's filter.", least=0, most=1000)
    max_faces: int = option(10_000, "Triangles of the asset at most.", least=100, most=10_000_000)
    texture_size: int = option(512, "Texels along a side of the texture.", least=16, most=8192)
    longest_side: float = option(1.0, "Of the exported object, in meters.", least=1e-6, most=1e6)

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
    from scipy import ndimage

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
    """A closed mesh with outward winding, of where the volume is above the level.

    Vertices are placed on the logarithm of the density, which is nearly linear across a soft surface,
    clipped to a factor of four either way, which puts a hard edge between its two lattice points.

    Args:
        volume: (N, N, N) densities on [-radius, radius]^3.
        level: the density at the surface.
        radius: half a side of the cube.
        min_component: pieces of a smaller share of the whole are left out.
        smoothing: steps of Taubin's filter.
    """
    import trimesh
    from skimage.measure import marching_cubes

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


def to_gltf_axes(points: NDArray[Any]) -> NDArray[Any]:
    """From x front, y left, z up to glTF's z front, x left, y up; points (..., 3). A rotation."""
    return np.stack([points[..., 1], points[..., 2], points[..., 0]], axis=-1)


def extract_mesh(
    field: Field, options: MeshOptions | None = None, log: Callable[[str], None] | None = None
) -> trimesh.Trimesh:
    """The field's surface as a closed mesh of at most `max_faces` triangles, in world axes and units (z up).

    The level is kept in `mesh.metadata["level"]`.

    Raises:
        CarvError: the field is empty or full.
    """
    options = options or MeshOptions()
    volume = density_volume(field, options.resolution)
    level = choose_level(volume, field.radius, options.level)
    mesh = mesh_from_volume(volume, level, field.radius, options.min_component, options.smoothing)
    mesh = _decimated(mesh, options.max_faces)
    mesh.metadata["level"] = level
    if log is not None:
        closed = "closed" if mesh.is_watertight else "NOT closed"
        log(f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces, {closed}, level {level:.3g}")
    return mesh


def _decimated(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    """At most `max_faces` triangles by quadric error; a closed mesh stays closed, or keeps all its triangles."""
    if len(mesh.faces) <= max_faces:
        return mesh
    fewer = mesh.simplify_quadric_decimation(face_count=max_faces)
    return fewer if fewer.is_watertight or not mesh.is_watertight else mesh


def save_asset(
    asset: trimesh.Trimesh, folder: Path, longest_side: float = 1.0, extras: Mapping[str, Any] | None = None
) -> None:
    """Write a textured mesh as asset.glb, and as asset.obj with asset.mtl and asset.png.

    Both have y up, the front (+x of the world) turned to +z, the longest side `longest_side` meters, stand on the plane
    y = 0 and are centered above the origin. The material is rough and not metallic.

    Args:
        asset: of `texture.textured`, in the field's axes and units.
        folder: where the files go.
        longest_side: in meters.
        extras: plain JSON values for `asset.extras` of asset.glb.
    """
    import trimesh

    normals = to_gltf_axes(np.asarray(asset.vertex_normals))
    vertices = to_gltf_axes(np.asarray(asset.vertices, dtype=np.float64))
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    ground = np.array([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])
    vertices = (vertices - ground) * (longest_side / (high - low).max())
    out = trimesh.Trimesh(vertices, asset.faces, vertex_normals=normals, visual=asset.visual, process=False)
    for name, content in {**_glb(out, extras), **_obj(out)}.items():
        write_atomic(folder / name, content)


def _glb(mesh: trimesh.Trimesh, extras: Mapping[str, Any] | None) -> dict[str, bytes]:
    import trimesh

    def name_asset(tree: dict[str, Any]) -> None:
        tree["asset"] = {"version": "2.0", "generator": "carv_3d", **({"extras": dict(extras)} if extras else {})}

    scene = trimesh.Scene(mesh)
    content = trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=name_asset)
    return {"asset.glb": content}


def _obj(mesh: trimesh.Trimesh) -> dict[str, bytes]:
    import trimesh

    white, black = [255] * 4, [0, 0, 0, 255]
    image = mesh.visual.material.baseColorTexture
    plain = trimesh.visual.material.SimpleMaterial(image, diffuse=white, ambient=white, specular=black, name="asset")
    simple = mesh.copy()
    simple.visual = trimesh.visual.TextureVisuals(uv=mesh.visual.uv, material=plain)
    text, parts = trimesh.exchange.obj.export_obj(
        simple, include_normals=True, return_texture=True, mtl_name="asset.mtl", header="y up, front +z, meters"
    )
    return {"asset.obj": text.encode(), **parts}
