"""A texture for a closed mesh: an atlas of its charts by xatlas, and the field's colors baked into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import trimesh
from nerfacc.volrend import render_weight_from_density
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from carv_3d.scenes.fields import Field

__all__ = ["surface_colors", "textured"]

PADDING = 2  # texels between two charts of the atlas
Array = NDArray[Any]


@torch.no_grad()
def surface_colors(field: Field, points: Array, normals: Array, n_samples: int = 12) -> NDArray[np.float32]:
    """Colors (V, 3) in [0, 1] of what a camera looking along `-normals` sees at `points` (V, 3).

    A short ray from 2 to 20 hundredths of the radius below the surface, its samples weighted by
    `T alpha sigma` over their sum, those much thinner than the heaviest one left out: the visible part, and
    of it the dense part, so that neither a background nor the color of the air around it enters.
    """
    device = next(field.parameters()).device
    edges = torch.linspace(0.02, 0.2, n_samples + 1, device=device) * field.radius
    mids = 0.5 * (edges[1:] + edges[:-1])
    out = []
    for p, n in zip(*(torch.as_tensor(np.asarray(a), dtype=torch.float32).split(16384) for a in (points, normals))):
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


def textured(field: Field, mesh: trimesh.Trimesh, size: int) -> trimesh.Trimesh:
    """The mesh with its vertices split along the seams of an atlas, and the field's colors as a texture.

    Args:
        field: where the colors come from.
        mesh: closed, in the field's axes and units.
        size: texels along a side of the texture.

    Returns:
        The same surface with `visual.uv` (V, 2), the origin at the image's lower left, and an image (size, size, 3),
        sRGB, its charts widened over all that lies between them, as the material's base color.
    """
    source, faces, uv = _atlas(mesh, size)
    vertices, normals = np.asarray(mesh.vertices)[source], np.asarray(mesh.vertex_normals)[source]
    from carv_3d.scenes._raster import rasterize  # numba waits until it is needed

    face, weights = rasterize(uv * size - 0.5, np.zeros(len(uv)), faces, size, size)
    covered = face >= 0
    corners, w = faces[face[covered]], weights[covered]
    points = np.einsum("nc,ncd->nd", w, vertices[corners])
    facing = np.einsum("nc,ncd->nd", w, normals[corners])
    facing /= np.linalg.norm(facing, axis=1, keepdims=True).clip(1e-12)
    image = np.zeros((size, size, 3), np.float32)
    image[covered] = surface_colors(field, points, facing)
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    image = image[tuple(nearest)][::-1]  # an image's first row is its top
    texture = Image.fromarray((image * 255 + 0.5).clip(0, 255).astype(np.uint8))
    material = trimesh.visual.material.PBRMaterial(
        name="asset", baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0
    )
    out = trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)
    out.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return out


def _atlas(mesh: trimesh.Trimesh, size: int) -> tuple[Array, Array, Array]:
    """Each new vertex's old one (V,), faces (F, 3) of new vertices and their UVs (V, 2) in [0, 1]."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32))
    pack = xatlas.PackOptions()
    pack.padding, pack.resolution = PADDING, size
    charts = xatlas.ChartOptions()
    charts.max_iterations = 1
    atlas.generate(charts, pack)
    source, faces, uv = atlas[0]
    return source.astype(np.int64), faces.astype(np.int64), uv.astype(np.float64)
