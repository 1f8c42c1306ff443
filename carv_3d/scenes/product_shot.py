"""Images of a textured mesh on a white ground with a soft shadow, as a product is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from carv_3d.scenes.cameras import Cameras

__all__ = ["product_shot"]

FINER = 2  # an image is drawn at twice its size and averaged
AMBIENT = 0.8  # the texture holds its own shading: light from the camera's upper left only rounds it
SHADOW = 0.45  # how much of the light the darkest shadow takes
SHADOW_MAP = 128  # texels along a side of the ground's shadow


def product_shot(asset: trimesh.Trimesh, cameras: Cameras, height: int, width: int) -> Tensor:
    """Images (B, height, width, 3) in [0, 1] of `texture.textured`'s mesh, in the field's axes; no gradient."""
    scene = _Scene(asset)
    return torch.stack([scene.image(cameras[i], height, width) for i in range(len(cameras))])


class _Scene:
    """A mesh with its texture, and the ground's shadow below it."""

    def __init__(self, asset: trimesh.Trimesh) -> None:
        self.vertices = np.asarray(asset.vertices, np.float64)
        self.faces = np.ascontiguousarray(asset.faces, np.int64)
        self.normals, self.uv = np.asarray(asset.vertex_normals), np.asarray(asset.visual.uv)
        self.texture = _as_image(np.asarray(asset.visual.material.baseColorTexture.convert("RGB")) / 255.0)
        self.low, self.high = self.vertices.min(axis=0), self.vertices.max(axis=0)
        self.shadow = _as_image(self._shadow()[..., None])

    @property
    def reach(self) -> float:
        """Half a side of the shadow's square, centered below the object."""
        return float((self.high - self.low).max())

    def _shadow(self) -> NDArray[Any]:
        """What is missing of the light on the ground, in [0, 1]: less below what is high up, and blurred."""
        from carv_3d.scenes._raster import rasterize

        center = 0.5 * (self.low + self.high)[:2]
        points = ((self.vertices[:, :2] - center) / self.reach + 1) * (0.5 * SHADOW_MAP) - 0.5
        above = self.vertices[:, 2] - self.low[2]
        face, weights = rasterize(points, above, self.faces, SHADOW_MAP, SHADOW_MAP)
        lowest = (weights * above[self.faces[face]]).sum(axis=-1)
        dark = np.where(face >= 0, np.exp(-3 * lowest / self.reach), 0.0)
        return sum(ndimage.gaussian_filter(dark, s * SHADOW_MAP) for s in (0.02, 0.06)) / 2

    def image(self, camera: Cameras, height: int, width: int) -> Tensor:
        """One image (height, width, 3)."""
        from carv_3d.scenes._raster import rasterize

        camera, H, W = camera.to("cpu"), FINER * height, FINER * width
        pixels, depth = camera.project(torch.from_numpy(self.vertices).float(), H, W)
        face, weights = rasterize((pixels[0] - 0.5).double().numpy(), depth[0].double().numpy(), self.faces, H, W)
        seen = face >= 0
        corners, w = self.faces[face[seen]], weights[seen][..., None]
        uv = torch.from_numpy((w * self.uv[corners]).sum(axis=1)).float()
        normals = F.normalize(torch.from_numpy((w * self.normals[corners]).sum(axis=1)).float(), dim=-1)
        light = F.normalize(camera.c2w[0, :, :3] @ torch.tensor([-0.4, 0.6, 0.7]), dim=0)
        shade = AMBIENT + (1 - AMBIENT) * (normals @ light).clamp(0, 1)
        drawn = torch.zeros(H, W, 4)
        drawn[torch.from_numpy(seen)] = F.pad(_sample(self.texture, uv) * shade[:, None], (0, 1), value=1.0)
        color, alpha = F.avg_pool2d(drawn.permute(2, 0, 1), FINER).permute(1, 2, 0).split([3, 1], dim=-1)
        return (color + (1 - alpha) * self._ground(camera, height, width)).clamp(0, 1)

    def _ground(self, camera: Cameras, height: int, width: int) -> Tensor:
        """White, and the shadow where a ray meets the plane below the object from above."""
        rays = camera.rays(height, width)
        o, d = rays.origins[0], rays.directions[0]
        t = (float(self.low[2]) - o[..., 2]) / d[..., 2]
        center = torch.from_numpy(0.5 * (self.low + self.high)[:2]).float()
        uv = (((o + t[..., None] * d)[..., :2] - center) / self.reach + 1) / 2
        hit = (t > 0) & (d[..., 2] < 0) & ((uv > 0) & (uv < 1)).all(dim=-1)
        out = torch.ones(height, width, 3)
        out[hit] = 1 - SHADOW * _sample(self.shadow, torch.stack([uv[hit][:, 0], 1 - uv[hit][:, 1]], dim=-1))
        return out


def _as_image(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float()


def _sample(image: Tensor, uv: Tensor) -> Tensor:
    """An image (1, C, H, W) at `uv` (N, 2), the origin at its lower left: (N, C)."""
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1)[None, :, None]
    out = F.grid_sample(image, grid, padding_mode="border", align_corners=False)[0, :, :, 0]
    return out.t()
