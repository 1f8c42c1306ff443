"""Rendering: closed-form transmittance, which face is seen, backgrounds, gradients, both sample layouts."""

from __future__ import annotations

import math
from typing import Any

import nerfacc.cuda
import nerfacc.volrend
import pytest
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.scenes.cameras import Cameras, Rays, orbit
from carv_3d.scenes.fields import Field, FieldOptions, VoxelGridField
from carv_3d.scenes.rendering import RenderOptions, RenderOutput, VolumeRenderer, ray_sphere


class Constant(Field):
    """Density `s` everywhere, red where x > 0, blue elsewhere."""

    def __init__(self, s: float) -> None:
        super().__init__(FieldOptions())
        self.s = torch.nn.Parameter(torch.tensor(s))

    def raw(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        return self.s.expand(len(x), 1)

    def density_and_color(self, x: Tensor) -> tuple[Tensor, Tensor]:
        front = (x[:, :1] > 0).float()
        return self.density(x), torch.cat([front, torch.zeros_like(front), 1 - front], dim=-1)


def test_ray_sphere_by_hand() -> None:
    o = torch.tensor([[3.0, 0, 0], [0, 0, 0], [3.0, 0, 0], [3.0, 2, 0], [3.0, 0.6, 0]])
    d = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [1.0, 0, 0], [-1.0, 0, 0], [-1.0, 0, 0]])
    near, far, hit = ray_sphere(o, d, 1.0)
    assert hit.tolist() == [True, True, False, False, True]
    torch.testing.assert_close(near[[0, 1, 4]], torch.tensor([2.0, -1.0, 2.2]))
    torch.testing.assert_close(far[[0, 1, 4]], torch.tensor([4.0, 1.0, 3.8]))


@pytest.mark.parametrize("training", [False, True])
def test_constant_sphere_transmits_exp_minus_sigma_l(training: bool) -> None:
    """Exact for every ray, jittered or not: l is the chord of the sphere."""
    renderer = VolumeRenderer(Constant(0.7)).train(training)
    rays = orbit(3, elevation=20.0, distance=2.5, fovy=60.0).rays(9, 11)
    out = renderer(rays, None, torch.Generator().manual_seed(0))
    o, d = rays.origins, rays.directions
    b = (o * d).sum(-1)
    chord = 2 * (1.08**2 - (o * o).sum(-1) + b * b).clamp_min(0).sqrt()
    torch.testing.assert_close(1 - out.opacity[..., 0], torch.exp(-0.7 * chord), atol=1e-5, rtol=1e-5)
    assert (chord == 0).any()  # some rays miss
    assert out.weights.shape == (int((chord > 0).sum()), 36 if training else 64)


def test_gradient_of_the_transmittance_is_known() -> None:
    field = Constant(0.4)
    ray = Rays(torch.tensor([[[[3.0, 0.0, 0.0]]]]), torch.tensor([[[[-1.0, 0.0, 0.0]]]]))
    VolumeRenderer(field)(ray).opacity.sum().backward()
    length = 2 * 1.08
    assert field.s.grad is not None
    assert field.s.grad.item() == pytest.approx(length * math.exp(-0.4 * length), rel=1e-4)


def test_a_camera_inside_starts_at_the_near_plane() -> None:
    ray = Rays(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.0, 0.0, 1.0]]]]))
    out = VolumeRenderer(Constant(1.0)).eval()(ray)
    assert out.opacity.item() == pytest.approx(1 - math.exp(-(1.08 - 0.01)), rel=1e-5)


def test_azimuth_zero_sees_the_plus_x_face() -> None:
    renderer = VolumeRenderer(Constant(50.0))
    rgb, _, depth = renderer.render(orbit(2, elevation=0.0, distance=3.0, fovy=30.0), 8, 8)
    assert renderer.training  # left as it was
    assert rgb[0, 4, 4].tolist() == pytest.approx([1, 0, 0], abs=1e-3)  # red: x > 0
    assert rgb[1, 4, 4].tolist() == pytest.approx([0, 0, 1], abs=1e-3)
    assert depth[0, 4, 4].item() == pytest.approx(3 - 1.08, abs=0.08)


def test_left_of_the_object_is_on_the_right_of_its_front_view() -> None:
    field = VoxelGridField(FieldOptions(resolution=16, blob_radius=-1.0))
    with torch.no_grad():
        field.grid[7:9, 12:14, 11:13, 0] = 8.0  # at +y (left) and +z (up)
    _, opacity, _ = VolumeRenderer(field).render(orbit(1, elevation=0.0, distance=3.0, fovy=50.0), 16, 16)
    row, column = divmod(int(opacity.flatten().argmax()), 16)
    assert column > 9
    assert row < 6


def test_each_image_has_its_own_background() -> None:
    cameras = orbit(2, distance=3.0)
    background = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.25, 1.0]], requires_grad=True)
    out = VolumeRenderer(Constant(0.3))(cameras.rays(8, 8), background)
    torch.testing.assert_close(out.comp_rgb[:, 0, 0], background)  # the corners miss
    out.comp_rgb.sum().backward()
    free = (1 - out.opacity).sum(dim=(1, 2)).expand(2, 3)
    torch.testing.assert_close(background.grad, free)


def test_finished_images_have_backgrounds_of_their_own() -> None:
    background = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.25, 1.0]])
    rgb, opacity, _ = VolumeRenderer(Constant(0.3)).render(orbit(2, distance=3.0), 8, 8, background)
    torch.testing.assert_close(rgb[:, 0, 0], background)  # the corners miss
    assert opacity.amax((1, 2, 3)).min() > 0.1
    black, _, _ = VolumeRenderer(Constant(0.3)).render(orbit(1, distance=3.0), 8, 8)
    assert black[0, 0, 0].tolist() == [0, 0, 0]


def test_jitter_comes_from_the_generator() -> None:
    renderer = VolumeRenderer(VoxelGridField(FieldOptions(resolution=12)))
    rays = orbit(1).rays(8, 8)
    first = renderer(rays, None, torch.Generator().manual_seed(3)).comp_rgb
    torch.manual_seed(99)
    again = renderer(rays, None, torch.Generator().manual_seed(3)).comp_rgb
    other = renderer(rays, None, torch.Generator().manual_seed(4)).comp_rgb
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def samples(training: bool, **options: Any) -> tuple[RenderOutput, Tensor]:
    """A render of a constant field, and where in its interval each sample lies (rays, samples)."""
    renderer = VolumeRenderer(Constant(0.5), RenderOptions(**options)).train(training)
    rays = orbit(1, distance=2.5).rays(40, 40)
    out = renderer(rays, None, torch.Generator().manual_seed(0))
    along = (out.positions - rays.origins.view(-1, 3)[out.ray_indices][:, None]).norm(dim=-1)
    return out, (along - out.t_starts) / (out.t_ends - out.t_starts)


def test_each_sample_is_jittered_by_itself_uniformly() -> None:
    _, u = samples(training=True, num_samples_per_ray=8)
    error = 1 / math.sqrt(len(u))
    assert float(u.min()) > -1e-3
    assert float(u.max()) < 1 + 1e-3
    assert abs(float(u.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / u.numel())
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.05)
    correlation = torch.corrcoef(u.T)
    assert float((correlation - torch.eye(8)).abs().max()) < 5 * error  # of any two samples of one ray
    assert abs(float(torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1])) < 4 * error  # of two rays


@pytest.mark.parametrize(("training", "options"), [(False, {}), (True, {"randomized": False})])
def test_without_jitter_samples_are_midpoints(training: bool, options: dict[str, Any]) -> None:
    _, u = samples(training, **options)
    torch.testing.assert_close(u, torch.full_like(u, 0.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("training", "options", "expected"),
    [
        (True, {"num_samples_per_ray": 5, "eval_samples_per_ray": 9}, 5),
        (False, {"num_samples_per_ray": 5, "eval_samples_per_ray": 9}, 9),
        (False, {"num_samples_per_ray": 12, "eval_samples_per_ray": 9}, 12),
    ],
)
def test_samples_per_ray_are_those_of_the_mode(training: bool, options: dict[str, Any], expected: int) -> None:
    out, _ = samples(training, **options)
    assert out.weights.shape[1] == expected


def test_per_sample_outputs_belong_together() -> None:
    out, _ = samples(training=True)
    torch.testing.assert_close(out.t_ends[:, :-1], out.t_starts[:, 1:])
    assert torch.equal(out.sigmas, torch.full_like(out.sigmas, 0.5))
    opacity = torch.zeros(1600).index_copy(0, out.ray_indices, out.weights.sum(-1))
    torch.testing.assert_close(out.opacity.view(-1), opacity)
    torch.testing.assert_close(out.directions.norm(dim=-1), torch.ones_like(out.sigmas))
    middle = out.ray_indices.tolist().index(20 * 40 + 20)
    depth = (out.weights[middle] * (out.positions[middle] - orbit(1, distance=2.5).position).norm(dim=-1)).sum()
    torch.testing.assert_close(out.depth.view(-1)[820], depth / out.weights[middle].sum())


def test_the_near_plane_is_where_rays_begin() -> None:
    ray = Rays(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.0, 0.0, 1.0]]]]))
    out = VolumeRenderer(Constant(1.0), RenderOptions(near_plane=0.3)).eval()(ray)
    assert float(out.t_starts[0, 0]) == pytest.approx(0.3)
    assert out.opacity.item() == pytest.approx(1 - math.exp(-(1.08 - 0.3)), rel=1e-5)


def test_a_finished_image_holds_so_many_rays_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, held = VolumeRenderer(Constant(0.5), RenderOptions(eval_chunk_rays=24)), []
    forward = renderer.forward
    monkeypatch.setattr(renderer, "forward", lambda rays, *a: held.append(rays.origins.shape[2]) or forward(rays, *a))
    renderer.render(orbit(1), 8, 8)
    assert held == [24, 24, 16]


def test_image_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    field = VoxelGridField(FieldOptions(resolution=6))
    with torch.no_grad():
        field.grid.add_(0.5 * torch.randn_like(field.grid))
    renderer = VolumeRenderer(field, RenderOptions(num_samples_per_ray=12, eval_samples_per_ray=12)).eval()
    rays = orbit(2, distance=2.5).rays(6, 6)
    target = torch.rand(2, 6, 6, 3)
    background = torch.rand(2, 3)

    def loss() -> Tensor:
        return ((renderer(rays, background).comp_rgb - target) ** 2).sum()

    loss().backward()
    gradient = field.grid.grad
    assert gradient is not None
    direction = torch.randn_like(field.grid)
    with torch.no_grad():
        field.grid.add_(direction, alpha=1e-2)
        up = loss().item()
        field.grid.add_(direction, alpha=-2e-2)
        down = loss().item()
    assert (up - down) / 2e-2 == pytest.approx((gradient * direction).sum().item(), rel=5e-3)


def test_chunked_render_equals_one_call() -> None:
    field = VoxelGridField(FieldOptions(resolution=12))
    cameras: Cameras = orbit(5)
    background = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    whole = VolumeRenderer(field).render(cameras, 8, 8, background)
    chunked = VolumeRenderer(field, RenderOptions(eval_chunk_rays=24)).render(cameras, 8, 8, background)
    for a, b in zip(whole, chunked):
        torch.testing.assert_close(a, b)


def _packed_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow stand-ins for the two CUDA kernels behind nerfacc's packed sums."""

    def exclusive(starts: Tensor, counts: Tensor, x: Tensor, normalize: bool, backward: bool) -> Tensor:
        out = torch.zeros_like(x)
        for s, n in zip(starts.tolist(), counts.tolist()):
            part = x[s : s + n].flip(0) if backward else x[s : s + n]
            total = part.cumsum(0) - part
            out[s : s + n] = total.flip(0) if backward else total
        return out

    def pack(ray_indices: Tensor, n_rays: int) -> Tensor:
        counts = torch.bincount(ray_indices, minlength=n_rays)
        return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)

    monkeypatch.setattr(nerfacc.cuda, "exclusive_sum", exclusive)
    monkeypatch.setattr(nerfacc.volrend, "pack_info", pack)


class LatticeGrid:
    """Stands in for nerfacc's occupancy grid: constant steps from t_min to t_max, nothing skipped."""

    def sampling(self, o: Tensor, d: Tensor, **kw: Any) -> tuple[Tensor, Tensor, Tensor]:
        rows, starts = [], []
        for r, (low, high) in enumerate(zip(kw["t_min"].tolist(), kw["t_max"].tolist())):
            t = low
            while t + 0.5 * kw["render_step_size"] < high:
                rows.append(r)
                starts.append(t)
                t += kw["render_step_size"]
        t0 = torch.tensor(starts)
        return torch.tensor(rows, dtype=torch.int64), t0, t0 + kw["render_step_size"]


def test_packed_samples_give_the_dense_image(monkeypatch: pytest.MonkeyPatch) -> None:
    _packed_kernels(monkeypatch)
    field = VoxelGridField(FieldOptions(resolution=16))
    dense = VolumeRenderer(field, RenderOptions(eval_samples_per_ray=150)).eval()
    packed = VolumeRenderer(field, RenderOptions(eval_samples_per_ray=150)).eval()
    packed.grid = LatticeGrid()
    rays = orbit(2, distance=2.5).rays(6, 6)
    background = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    a, b = dense(rays, background), packed(rays, background)
    assert b.weights.dim() == 1
    torch.testing.assert_close(a.comp_rgb, b.comp_rgb, atol=2e-3, rtol=0)
    torch.testing.assert_close(a.opacity, b.opacity, atol=2e-3, rtol=0)
    (ga,) = torch.autograd.grad(a.comp_rgb.square().sum(), field.grid)
    (gb,) = torch.autograd.grad(b.comp_rgb.square().sum(), field.grid)
    assert (ga - gb).norm() < 0.02 * ga.norm()
    away = Rays(rays.origins + 100, rays.directions)
    out = packed(away, background)  # not a single sample
    torch.testing.assert_close(out.comp_rgb, background[:, None, None].expand(2, 6, 6, 3))
    out.comp_rgb.sum().backward()


def test_the_occupancy_grid_is_as_fine_and_as_strict_as_given() -> None:
    def kept(**options: Any) -> tuple[list[int], float]:
        renderer = VolumeRenderer(VoxelGridField(FieldOptions(resolution=16)), RenderOptions(**options))
        renderer._build_grid()
        for step in range(0, 320, 16):  # twenty updates: 0.95^20 is left of the grid's beginning, which is full
            renderer.update(step)
        return renderer.grid.resolution.tolist(), float(renderer.grid.binaries.float().mean())

    size, loose = kept(grid_resolution=12, prune_density_threshold=1e-4)
    assert size == [12] * 3
    assert kept(grid_resolution=9)[0] == [9] * 3
    strict = kept(grid_resolution=12, prune_density_threshold=0.5)[1]
    assert 0 < strict < loose


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_samples_per_ray", 0),
        ("eval_samples_per_ray", 0),
        ("grid_resolution", 0),
        ("eval_chunk_rays", 0),
        ("near_plane", -0.1),
        ("near_plane", math.nan),
        ("prune_density_threshold", -0.1),
        ("grid_prune", "yes"),
    ],
)
def test_options_out_of_range_are_named(option: str, value: Any) -> None:
    with pytest.raises(CarvError, match=f"^{option} is {value!r}"):
        RenderOptions(**{option: value})
    RenderOptions(near_plane=0.0, prune_density_threshold=0.0, eval_chunk_rays=1)  # the ends of the ranges


def test_an_occupancy_grid_needs_cuda() -> None:
    assert VolumeRenderer(VoxelGridField(FieldOptions(resolution=4))).grid is None
    assert VolumeRenderer(VoxelGridField(FieldOptions(resolution=4)), RenderOptions(grid_prune=False)).grid is None
    with pytest.raises(CarvError, match="grid_prune needs a field on CUDA"):
        VolumeRenderer(VoxelGridField(FieldOptions(resolution=4)), RenderOptions(grid_prune=True))


def test_large_images_leave_out_what_is_empty_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    field = VoxelGridField()
    with torch.no_grad():  # a thin bent rod, one voxel wide, and nothing else
        field.grid[..., 0] = -20.0
        field.grid[24, 24, 8:40, 0] = 20.0
        field.grid[24, 24:40, 40, 0] = 20.0
        field.grid[..., 1] = 3.0
    renderer = VolumeRenderer(field)
    cameras, queries = orbit(2, distance=2.75, fovy=39.0, elevation=20.0), []
    real = field.density_and_color
    monkeypatch.setattr(field, "density_and_color", lambda x: (queries.append(len(x)), real(x))[1])
    culled, some = renderer.render(cameras, 192, 200, torch.ones(3)), sum(queries)
    monkeypatch.setattr("carv_3d.scenes.rendering.COARSE_IMAGE", 1000)
    whole, every = renderer.render(cameras, 192, 200, torch.ones(3)), sum(queries) - some
    assert whole[1].max() > 0.9
    for a, b in zip(culled, whole):
        assert (a - b)[whole[1][..., 0] > 1e-3].abs().max() < 1e-6
    assert (culled[0] - whole[0]).abs().max() < 1e-3
    assert some < 0.35 * every
