"""Cameras on a sphere around the object, by threestudio's conventions, and their rays.

World axes: x to the object's front, y to its left, z up. A camera at distance d, elevation el and azimuth
az (degrees) stands at `d (cos el cos az, cos el sin az, sin el)`; azimuth 0 sees the front. Camera axes:
x right, y up, looking along -z. Pixel (i, j) is column i from the left, row j from the top, and its center
lies at (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.options import BatchOptions, option
from carv_3d.errors import CarvError
from carv_3d.scenes.camera_sequence import low_discrepancy
from carv_3d.scenes.view_phrases import view_phrase

__all__ = ["CameraOptions", "Cameras", "Rays", "look_at", "orbit", "sample_cameras", "view_phrase"]

Range = tuple[float, float]
CameraSampling = Literal["random", "low_discrepancy", "antipodal"]


@dataclass(frozen=True, kw_only=True)
class CameraOptions(BatchOptions):
    """What `sample_cameras` and `orbit` read; threestudio's `data` keys, most values as in its dreamfusion-sd.

    Angles in degrees, distances in world units. `fovy` is the vertical field of view.
    """

    height: int = option(64, "Rows of a render in training.", least=1, most=8192)
    width: int = option(64, "Columns of a render in training.", least=1, most=8192)
    elevation_range: Range = option((-10.0, 45.0), "Degrees above the horizon.", least=-90, most=90)
    azimuth_range: Range = option(
        (-180.0, 180.0), "Degrees around the object; 0 sees its front.", least=-3600, most=3600
    )
    camera_distance_range: Range = option((1.5, 2.0), "Distance from the object's center.", least=1e-6, most=1e6)
    fovy_range: Range = option((40.0, 70.0), "Vertical field of view in degrees.", least=1e-3, most=179)
    camera_perturb: float = option(0.0, "Standard deviation of a normal shift of the position.", least=0, most=1e6)
    center_perturb: float = option(
        0.0, "Standard deviation of a normal shift of the point looked at.", least=0, most=1e6
    )
    up_perturb: float = option(0.0, "Standard deviation of a normal shift of the up vector.", least=0, most=1e6)
    batch_uniform_azimuth: bool = option(True, "One azimuth in each of R equal parts of the range.")
    camera_sampling: CameraSampling = option(
        "random",
        "low_discrepancy spreads cameras evenly over renders and steps; antipodal draws pairs on opposite sides of the "
        "object. Each camera by itself is still random.",
    )
    progressive_until: int = option(
        0,
        "The ranges grow from the evaluation view to their full width by this step.",
        least=0,
        most=10**9,
    )
    eval_height: int = option(64, "Rows of a finished image.", least=1, most=8192)
    eval_width: int = option(64, "Columns of a finished image.", least=1, most=8192)
    eval_elevation_deg: float = option(15.0, "Elevation of finished images.", least=-90, most=90)
    eval_camera_distance: float = option(2.0, "Distance of finished images.", least=1e-6, most=1e6)
    eval_fovy_deg: float = option(70.0, "Field of view of finished images.", least=1e-3, most=179)
    n_test_views: int = option(120, "Images of the turntable.", least=1, most=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("elevation_range", "azimuth_range", "camera_distance_range", "fovy_range"):
            low, high = getattr(self, name)
            if low > high:
                raise CarvError(f"{name} is {[low, high]}; give two rising numbers.")
        self._check_pairs(self.batch_size)

    def _check_pairs(self, B: int) -> None:
        if self.camera_sampling == "antipodal" and B % 2:
            raise CarvError(f"camera_sampling is antipodal, which draws pairs, and batch_size is {B}: make it even.")

    def at_step(self, step: int) -> CameraOptions:
        """The options with elevation and azimuth ranges as wide as `progressive_until` has them at `step`."""
        if not self.progressive_until:
            return self
        r = min(1.0, step / (self.progressive_until + 1))

        def grow(pair: Range, start: float) -> Range:
            return ((1 - r) * start + r * pair[0], (1 - r) * start + r * pair[1])

        return replace(
            self,
            elevation_range=grow(self.elevation_range, self.eval_elevation_deg),
            azimuth_range=grow(self.azimuth_range, 0.0),
        )


@dataclass
class Rays:
    """`origins`, `directions` (B, H, W, 3); the directions have length 1."""

    origins: Tensor
    directions: Tensor


@dataclass
class Cameras:
    """A batch of B cameras.

    `c2w` (B, 3, 4): columns right, up, backward, position. `elevation`, `azimuth`, `fovy` (B,) in degrees,
    `distance` (B,): the nominal ones, before any perturbation; prompts go by them.
    """

    c2w: Tensor
    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    fovy: Tensor

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Cameras:
        """Some of the cameras, still a batch."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Cameras(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on `device`."""
        return Cameras(*(getattr(self, f.name).to(device) for f in fields(self)))

    @property
    def position(self) -> Tensor:
        """(B, 3), perturbation included."""
        return self.c2w[:, :, 3]

    def focal(self, height: int) -> Tensor:
        """Focal lengths (B,) in pixels of an image of `height` rows."""
        return 0.5 * height / torch.tan(0.5 * torch.deg2rad(self.fovy))

    def rays(self, height: int, width: int) -> Rays:
        """The rays through all pixel centers: origins and unit directions (B, height, width, 3)."""
        device, dtype = self.c2w.device, self.c2w.dtype
        i = torch.arange(width, device=device, dtype=dtype) + 0.5 - 0.5 * width
        j = torch.arange(height, device=device, dtype=dtype) + 0.5 - 0.5 * height
        f = self.focal(height)[:, None, None]
        x = (i[None, None, :] / f).expand(-1, height, -1)
        y = (-j[None, :, None] / f).expand(-1, -1, width)
        local = F.normalize(torch.stack([x, y, -torch.ones_like(x)], dim=-1), dim=-1)
        directions = torch.einsum("bij,bhwj->bhwi", self.c2w[:, :, :3], local)
        origins = self.position[:, None, None, :].expand_as(directions)
        return Rays(origins, directions)

    def project(self, points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where world `points` (N, 3) land: pixel coordinates (B, N, 2) as (column, row), depth (B, N).

        Depth is the distance along the viewing axis, positive in front of the camera.
        Differentiable in `points`.
        """
        local = torch.einsum("bij,bni->bnj", self.c2w[:, :, :3], points[None] - self.position[:, None])
        depth = -local[..., 2]
        f = self.focal(height)[:, None]
        column = 0.5 * width + f * local[..., 0] / depth
        row = 0.5 * height - f * local[..., 1] / depth
        return torch.stack([column, row], dim=-1), depth


def look_at(position: Tensor, center: Tensor, up: Tensor, azimuth: Tensor | None = None) -> Tensor:
    """Poses of cameras that look at a point.

    Looking straight along `up` leaves the roll open. It is then the limit of the cameras at `azimuth` as they climb to
    the pole.

    Args:
        position: (B, 3).
        center: (B, 3), the points looked at.
        up: (B, 3).
        azimuth: (B,) in degrees, 0 without one.

    Returns:
        `c2w` (B, 3, 4), see `Cameras`.
    """
    forward = F.normalize(center - position, dim=-1)
    right = torch.linalg.cross(forward, up, dim=-1)
    az = torch.deg2rad(torch.zeros_like(position[:, 0]) if azimuth is None else azimuth)
    fallback = torch.stack([-torch.sin(az), torch.cos(az), torch.zeros_like(az)], dim=-1)
    right = torch.where(right.norm(dim=-1, keepdim=True) > 1e-4, F.normalize(right, dim=-1), fallback)
    true_up = torch.linalg.cross(right, forward, dim=-1)
    return torch.stack([right, true_up, -forward, position], dim=-1)


def spherical(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Positions (B, 3) from angles in degrees and distances (B,)."""
    el, az = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    unit = torch.stack([torch.cos(el) * torch.cos(az), torch.cos(el) * torch.sin(az), torch.sin(el)], dim=-1)
    return distance[:, None] * unit


def sample_cameras(
    options: CameraOptions,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    step: int | None = None,
) -> Cameras:
    """B random cameras as threestudio draws them.

    Elevation: with probability 1/2 for the whole batch uniform in degrees, otherwise uniform on the sphere's
    area. Azimuth: uniform; with `batch_uniform_azimuth` one draw in each of B equal parts of the range.
    Distance and field of view: uniform.

    With the camera_sampling "low_discrepancy" each camera has this distribution, and they are spread evenly over the
    batch and the steps, see `camera_sequence`. The coin for the elevation is then each camera's own, and
    `batch_uniform_azimuth` has no effect.

    With "antipodal" camera B / 2 + i stands half the azimuth range further than camera i (180 degrees on the whole
    circle), see arXiv 2606.29964; all else is drawn for each. A uniform azimuth that is shifted around its range is
    uniform, so each camera has the distribution of a random one.

    Args:
        options: the ranges.
        batch_size: B; None is that of the options.
        generator: of all draws, on the CPU; the sequence's shift is drawn from its seed.
        step: needed with `progressive_until` and "low_discrepancy".

    Raises:
        CarvError: a sequence without a step, or pairs of an odd number.
    """
    o = options if step is None else options.at_step(step)
    B = o.batch_size if batch_size is None else batch_size
    o._check_pairs(B)
    units: list[Tensor] = []  # of the sequence, one for each quantity
    if o.camera_sampling == "low_discrepancy":
        if step is None:
            raise CarvError("camera_sampling is low_discrepancy, which needs the number of the step: pass `step`.")
        seed = torch.initial_seed() if generator is None else generator.initial_seed()
        units = list(low_discrepancy(step, B, 5, seed).float().clamp(max=1 - 2**-24).unbind(1))

    def rand() -> Tensor:
        return units.pop() if units else torch.rand(B, generator=generator)

    def uniform(pair: Range) -> Tensor:
        return pair[0] + (pair[1] - pair[0]) * rand()

    low, high = o.elevation_range
    coin = units.pop() if units else torch.rand((), generator=generator).expand(B)
    u = rand()
    heights = [math.sin(math.radians(end)) for end in (low, high)]
    by_area = torch.rad2deg(torch.asin(heights[0] + (heights[1] - heights[0]) * u)).clamp(low, high)
    elevation = torch.where(coin < 0.5, low + (high - low) * u, by_area)
    spread = o.batch_uniform_azimuth and not units
    fraction = rand()
    if spread:
        fraction = (fraction + torch.arange(B)) / B
    if o.camera_sampling == "antipodal":
        half = fraction[: B // 2]
        fraction = torch.cat([half, (half + 0.5) % 1])
    azimuth = o.azimuth_range[0] + (o.azimuth_range[1] - o.azimuth_range[0]) * fraction
    distance = uniform(o.camera_distance_range)
    fovy = uniform(o.fovy_range)

    position = spherical(elevation, azimuth, distance)
    position = position + o.camera_perturb * torch.randn(B, 3, generator=generator)
    center = o.center_perturb * torch.randn(B, 3, generator=generator)
    up = torch.tensor([0.0, 0.0, 1.0]) + o.up_perturb * torch.randn(B, 3, generator=generator)
    return Cameras(look_at(position, center, up, azimuth), elevation, azimuth, distance, fovy)


def orbit(
    n_views: int,
    elevation: float | Sequence[float] = 15.0,
    distance: float = 2.0,
    fovy: float = 70.0,
    start: float = 0.0,
    options: CameraOptions | None = None,
) -> Cameras:
    """Cameras around the object at equal steps of azimuth, counter-clockwise.

    The last is one step short of the first, so that a turntable loops.

    Args:
        n_views: how many.
        elevation: in degrees; of a sequence each has an equal share of the views (16 over 2 are twice 8 azimuths).
        distance: from the origin.
        fovy: vertical field of view in degrees.
        start: azimuth of the first, in degrees.
        options: take elevation, distance and field of view from its evaluation view.

    Raises:
        CarvError: the views do not divide evenly over the elevations.
    """
    if options is not None:
        elevation, distance = options.eval_elevation_deg, options.eval_camera_distance
        fovy = options.eval_fovy_deg
    rings = [float(elevation)] if isinstance(elevation, (int, float)) else [float(e) for e in elevation]
    if n_views < 1 or not rings or n_views % len(rings):
        raise CarvError(f"{n_views} views cannot be shared out evenly over {len(rings)} elevations.")
    per_ring = n_views // len(rings)
    azimuth = (start + torch.arange(per_ring) * (360.0 / per_ring)).repeat(len(rings))
    el = torch.tensor(rings).repeat_interleave(per_ring)
    d = torch.full_like(el, distance)
    position = spherical(el, azimuth, d)
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(n_views, 3)
    return Cameras(
        look_at(position, torch.zeros_like(position), up, azimuth), el, azimuth, d, torch.full_like(el, fovy)
    )
