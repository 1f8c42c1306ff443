"""Volume rendering of a field, with nerfacc's quadrature.

On the CPU every ray that meets the sphere of radius `field.radius` takes `num_samples_per_ray` samples
between its two crossings, as dense tensors (n_rays, n_samples); the others cost nothing. A `FusedHashField` is rendered
by compiled loops there, which skip empty cells. On CUDA nerfacc's occupancy grid does, and the samples are packed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from nerfacc.volrend import accumulate_along_rays, render_weight_from_density
from torch import Tensor

from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError
from carv_3d.scenes.cameras import Cameras, Rays
from carv_3d.scenes.fields import Field, FusedHashField
from carv_3d.scenes.fused import FusedField, RaySamples, render_fused
from carv_3d.scenes.occupancy import Occupancy

__all__ = ["RenderOptions", "RenderOutput", "VolumeRenderer", "ray_sphere"]

COARSE_IMAGE = 48  # pixels along the side of the image by which rays are left out
INVISIBLE = 1e-3  # opacity
REFRESH = 8  # steps between two updates of the compiled loops' occupancy grid


@dataclass(frozen=True, kw_only=True)
class RenderOptions(Options):
    """How rays are sampled."""

    num_samples_per_ray: int = option(36, "Samples of a ray in training.", least=1, most=2**16)
    eval_samples_per_ray: int = option(
        64,
        "Fewest samples of a ray in finished images: few without jitter draw contour lines.",
        least=1,
        most=2**16,
    )
    randomized: bool = option(True, "Jitter the samples in training.")
    near_plane: float = option(0.01, "Nearest sample, in world units.", least=0, most=1e6)
    grid_prune: bool | Literal["auto"] = option(
        "auto", "Skip what is empty by an occupancy grid; auto: on CUDA, and with fused."
    )
    grid_resolution: int = option(64, "Cells of the occupancy grid along an edge.", least=1, most=1024)
    prune_density_threshold: float = option(0.01, "Least optical depth of a step that is kept.", least=0, most=1e6)
    eval_chunk_rays: int = option(
        8192, "Rays of a finished image that are held in memory at once.", least=1, most=2**26
    )


@dataclass
class RenderOutput:
    """Images, differentiable in the field (and the colors in the background).

    `comp_rgb` (B, H, W, 3) over the background, `opacity` (B, H, W, 1) in [0, 1], `depth` (B, H, W, 1): the
    mean distance along the ray where there is anything, 0 elsewhere.

    Per sample, for regularizers: `weights`, `sigmas`, `t_starts`, `t_ends` (M, S) and `positions`,
    `directions` (M, S, 3) when dense (M rays that meet the sphere, `ray_indices` (M,) into B*H*W), or
    (S,), (S, 3) and `ray_indices` (S,) when packed.
    """

    comp_rgb: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor
    sigmas: Tensor
    t_starts: Tensor
    t_ends: Tensor
    positions: Tensor
    directions: Tensor
    ray_indices: Tensor


def ray_sphere(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays (N, 3), unit directions, cross the sphere around the origin: `(t_near, t_far, hit)`, (N,).

    `t_near` may be negative (the ray starts inside); `hit` is false for rays that miss or leave it behind.
    """
    b = (origins * directions).sum(dim=-1)
    closest = (origins * origins).sum(dim=-1) - b * b
    half = (radius * radius - closest).clamp_min(0).sqrt()
    return -b - half, half - b, (half > 0) & (half > b)


class VolumeRenderer(nn.Module):
    """Renders `field`; `update(step)` before each training step keeps its occupancy grid fresh, where it has one."""

    def __init__(self, field: Field, options: RenderOptions | None = None) -> None:
        super().__init__()
        self.field = field
        self.options = options or RenderOptions()
        self.grid: Any = None
        self._seen: tuple[Any, Tensor] | None = None  # the field's state and its cells, for finished images
        on_cuda = next(field.parameters()).device.type == "cuda"
        if self._fused() is not None:
            if self.options.grid_prune is not False:
                self.grid = Occupancy(field.radius, self.options.grid_resolution)
        elif self.options.grid_prune is True or (self.options.grid_prune == "auto" and on_cuda):
            if not on_cuda:
                raise CarvError("grid_prune needs a field on CUDA, or the fused one; set it to auto or false.")
            self._build_grid()

    def _build_grid(self) -> None:
        from nerfacc import OccGridEstimator

        r = self.field.radius
        self.grid = OccGridEstimator([-r, -r, -r, r, r, r], resolution=self.options.grid_resolution)
        self.grid.to(next(self.field.parameters()).device)
        self.grid.occs.fill_(1.0)
        self.grid.binaries.fill_(True)  # everything counts until the first update

    @property
    def step_size(self) -> float:
        """Length of a packed step: the sphere's diameter in `num_samples_per_ray` steps."""
        return 2 * self.field.radius / self.n_samples

    @property
    def n_samples(self) -> int:
        """Samples a ray takes in the present mode."""
        o = self.options
        if self.training:
            return o.num_samples_per_ray
        return max(o.num_samples_per_ray, o.eval_samples_per_ray)

    def _fused(self) -> FusedField | None:
        return self.field.compiled() if isinstance(self.field, FusedHashField) else None

    @property
    def _least_density(self) -> float:
        o = self.options
        return o.prune_density_threshold * o.num_samples_per_ray / (2 * self.field.radius)

    def _cells(self) -> Tensor:
        """The cells that the compiled loops read: in training the grid's, of finished images the present field's."""
        if self.grid is None:
            return torch.ones(1, 1, 1, dtype=torch.uint8)
        if self.training:
            return self.grid.cells
        now = [(p.data_ptr(), p._version) for p in self.field.parameters()]
        if self._seen is None or self._seen[0] != now:
            fresh = Occupancy(self.field.radius, self.grid.resolution)
            fresh.update(self.field.density, self._least_density, seed=0)
            self._seen = now, fresh.cells
        return self._seen[1]

    def update(self, step: int) -> None:
        """Let the occupancy grid follow the field; does nothing without one."""
        if self.grid is None:
            return
        if isinstance(self.grid, Occupancy):
            if step % REFRESH == 0:
                self.grid.update(self.field.density, self._least_density, seed=step)
            return
        self.grid.train()
        self.grid.update_every_n_steps(
            step=step,
            occ_eval_fn=lambda x: self.field.density(x) * self.step_size,
            occ_thre=self.options.prune_density_threshold,
        )

    def forward(
        self,
        rays: Rays,
        background: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """Render `rays` (B, H, W, 3) over `background`: colors (B, 3) or (3,), black without one.

        In training mode with `randomized` each sample is drawn uniformly within its interval, from
        `generator`; the intervals stay, so that the quadrature is unbiased in the optical depth and exact
        for a constant density. Otherwise samples are midpoints.
        """
        B, H, W, _ = rays.directions.shape
        o = rays.origins.reshape(-1, 3)
        d = rays.directions.reshape(-1, 3)
        n_rays = o.shape[0]
        fused = self._fused()
        packed = self.grid is not None and not isinstance(self.grid, Occupancy)
        if packed:
            t0, t1, index, mids = self._packed_samples(o, d, generator)
            x_d = d[index]
            x = o[index] + mids[:, None] * x_d
        else:
            t0, t1, index, mids = self._dense_samples(o, d, generator)
            x_d = d[index][:, None, :].expand(-1, mids.shape[1], -1)
            x = o[index][:, None, :] + mids[..., None] * x_d
        if fused is not None:
            samples = RaySamples(o[index], d[index], t0, t1, mids, self._cells())
            together, weights, sigma = render_fused(fused, samples)
        else:
            together, weights, sigma = self._quadrature(t0, t1, mids, x, index, n_rays if packed else None)
        if not packed and index.shape[0] < n_rays:
            together = together.new_zeros(n_rays, 5).index_copy(0, index, together)
        color, opacity, depth = together.split([3, 1, 1], dim=-1)
        color, opacity = color.view(B, H, W, 3), opacity.view(B, H, W, 1)
        depth = depth.view(B, H, W, 1) / opacity.clamp_min(1e-6)
        if background is not None:
            b = background.to(color).expand(B, 3)[:, None, None, :]
            color = color + b * (1 - opacity)
        return RenderOutput(color, opacity, depth, weights, sigma, t0, t1, x, x_d, index)

    def _quadrature(
        self, t0: Tensor, t1: Tensor, mids: Tensor, x: Tensor, index: Tensor, n_rays: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Color, opacity and summed depth (rays, 5), weights, densities; n_rays: of packed samples."""
        sigma, rgb = self.field.density_and_color(x.reshape(-1, 3))
        sigma, rgb = sigma.view(mids.shape), rgb.view(*mids.shape, 3)
        kw: dict[str, Any] = {} if n_rays is None else {"ray_indices": index, "n_rays": n_rays}
        weights, _, _ = render_weight_from_density(t0, t1, sigma, **kw)
        color = accumulate_along_rays(weights, rgb, **kw)
        opacity = accumulate_along_rays(weights, None, **kw)
        depth = accumulate_along_rays(weights, mids[..., None], **kw)
        return torch.cat([color, opacity, depth], dim=-1), weights, sigma

    def _dense_samples(
        self, o: Tensor, d: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        S = self.n_samples
        near, far, hit = ray_sphere(o, d, self.field.radius)
        near = near.clamp_min(self.options.near_plane)
        index = (hit & (far > near)).nonzero()[:, 0]
        near, far = near[index], far[index]
        edges = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, S + 1, device=o.device)
        t0, t1 = edges[:, :-1], edges[:, 1:]
        if self.training and self.options.randomized:
            where = generator.device if generator is not None else o.device
            u = torch.rand(index.shape[0], S, generator=generator, device=where).to(o.device)
        else:
            u = torch.full((1, 1), 0.5, device=o.device)
        return t0, t1, index, torch.lerp(t0, t1, u)

    def _packed_samples(
        self, o: Tensor, d: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        near, far, hit = ray_sphere(o, d, self.field.radius)
        near = near.clamp_min(self.options.near_plane)
        if self.training and self.options.randomized:  # here, not in nerfacc, for the generator's sake
            where = generator.device if generator is not None else o.device
            u = torch.rand(o.shape[0], generator=generator, device=where).to(o.device)
            near = near + (u - 1) * self.step_size  # the lattice starts up to a step before the sphere

        def sigma_fn(t0: Tensor, t1: Tensor, index: Tensor) -> Tensor:
            if t0.numel() == 0:
                return t0
            x = o[index] + 0.5 * (t0 + t1)[:, None] * d[index]
            return self.field.density(x).squeeze(-1)

        index, t0, t1 = self.grid.sampling(
            o,
            d,
            sigma_fn=sigma_fn,
            near_plane=self.options.near_plane,
            t_min=near,
            t_max=torch.where(hit, far, torch.full_like(far, -math.inf)),
            render_step_size=self.step_size,
        )
        if index.numel() == 0:  # nothing to see: one sample of no length keeps the graph in one piece
            index, t0, t1 = index.new_zeros(1), near.new_zeros(1), near.new_zeros(1)
        index = index.long()
        return t0, t1, index, 0.5 * (t0 + t1)

    @torch.no_grad()
    def render(
        self, cameras: Cameras, height: int, width: int, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Finished images without gradients, in chunks and in evaluation mode.

        Rays that meet nothing visible cost next to nothing.

        Returns:
            `comp_rgb` (B, H, W, 3) in [0, 1], `opacity` and `depth` (B, H, W, 1).
        """
        device = next(self.field.parameters()).device
        was_training = self.training
        self.eval()
        try:
            images = []
            for i in range(len(cameras)):
                b = torch.zeros(3) if background is None else background.expand(len(cameras), 3)[i]
                images.append(self._finished(cameras[i].to(device).rays(height, width), b.to(device)))
        finally:
            self.train(was_training)
        rgb, opacity, depth = torch.stack(images).split([3, 1, 1], dim=-1)
        return rgb, opacity, depth

    def _finished(self, rays: Rays, background: Tensor) -> Tensor:
        """One finished image: color, opacity and depth (H, W, 5)."""
        visible = self._worth_tracing(rays)
        image = torch.cat([background.clamp(0, 1), background.new_zeros(2)]).repeat(*visible.shape, 1)
        parts = []
        chunks = (r[0][visible].split(self.options.eval_chunk_rays) for r in (rays.origins, rays.directions))
        for o, d in zip(*chunks):
            out = self(Rays(o[None, None], d[None, None]), background)
            parts.append(torch.cat([out.comp_rgb.clamp(0, 1), out.opacity, out.depth], dim=-1)[0, 0])
        if parts:
            image[visible] = torch.cat(parts)
        return image

    def _worth_tracing(self, rays: Rays) -> Tensor:
        """Pixels (H, W) at most a coarse pixel away from one that a coarse image of the same rays sees.

        A coarse pixel is a 48th of the image, less than what the default field can resolve; small images
        are traced whole.
        """
        H, W = rays.directions.shape[1:3]
        stride = min(H, W) // COARSE_IMAGE
        if stride < 2:
            return torch.ones(H, W, dtype=torch.bool, device=rays.origins.device)
        middle = slice(stride // 2, None, stride)
        coarse = self(Rays(rays.origins[:, middle, middle], rays.directions[:, middle, middle])).opacity[..., 0]
        near = F.max_pool2d(coarse, 3, stride=1, padding=1) > INVISIBLE
        full = near[0].repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        return F.pad(full[:H, :W], (0, max(0, W - full.shape[1]), 0, max(0, H - full.shape[0])), value=True)
