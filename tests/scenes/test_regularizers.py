"""Regularisers at values known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from carv_3d.scenes import regularizers as reg
from carv_3d.scenes.cameras import orbit
from carv_3d.scenes.fields import FieldOptions, VoxelGridField
from carv_3d.scenes.rendering import RenderOutput, VolumeRenderer


def test_sparsity() -> None:
    value = reg.sparsity(torch.tensor([0.0, 0.5, 1.0]))
    assert value.item() == pytest.approx((0.1 + math.sqrt(0.26) + math.sqrt(1.01)) / 3)


def test_opaque_is_log_two_at_half_and_small_at_the_ends() -> None:
    assert reg.opaque(torch.full((3, 4), 0.5)).item() == pytest.approx(math.log(2))
    p = torch.tensor([0.25], requires_grad=True)
    reg.opaque(p).backward()
    assert p.grad is not None
    assert p.grad.item() == pytest.approx(math.log(0.75 / 0.25))  # dH/dp
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    value = reg.opaque(ends)
    value.backward()
    assert value.item() < 0.01
    assert ends.grad is not None
    assert torch.isfinite(ends.grad).all()


def test_density_sparsity_is_the_mean() -> None:
    assert reg.density_sparsity(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).item() == 3.0
    assert reg.density_sparsity(torch.empty(0, 7)).item() == 0.0


def test_orientation_counts_only_normals_that_face_away() -> None:
    weights = torch.tensor([0.5, 0.25, 1.0])
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0.6, 0.8]])
    directions = torch.tensor([[0.0, 0, 1]]).expand(3, 3)
    value = reg.orientation(weights, normals, directions, n_pixels=4)
    assert value.item() == pytest.approx((0.5 + 0.64) / 4)


def test_orientation_moves_the_normals_alone() -> None:
    weights = torch.tensor([0.5, 1.0], requires_grad=True)
    normals = torch.tensor([[0.0, 0, 1], [0, 0.6, 0.8]], requires_grad=True)
    reg.orientation(weights, normals, torch.tensor([[0.0, 0, 1]]).expand(2, 3), n_pixels=2).backward()
    assert weights.grad is None
    torch.testing.assert_close(normals.grad, torch.tensor([[0.0, 0, 0.5], [0, 0, 0.8]]))  # 2 w (n . d) d / pixels


def test_orientation_of_a_render_is_over_the_samples_that_weigh_enough() -> None:
    field = VoxelGridField(FieldOptions(resolution=16))
    with torch.no_grad():
        field.grid[..., 0] *= -0.3  # hollow: normals face away
    out = VolumeRenderer(field)(orbit(2, distance=2.5).rays(6, 6))
    for least in (1e-3, 0.02):
        keep = out.weights > least
        expected = reg.orientation(out.weights[keep], field.normal(out.positions[keep]), out.directions[keep], 72)
        assert 0 < int(keep.sum()) < out.weights.numel()
        torch.testing.assert_close(reg.render_orientation(field, out, least), expected)
    assert not torch.equal(reg.render_orientation(field, out), expected)


def test_losses_by_name_are_of_the_render() -> None:
    field = VoxelGridField(FieldOptions(resolution=12))
    out = VolumeRenderer(field)(orbit(1, distance=2.5).rays(6, 6))
    losses = {name: loss(field, out).item() for name, loss in reg.REGULARIZERS.items()}
    expected = {
        "density": out.sigmas.mean(), "opacity": (out.opacity + 1e-3).sqrt().mean(),
        "sparsity": reg.sparsity(out.opacity), "opaque": reg.opaque(out.opacity),
        "orient": reg.render_orientation(field, out), "tv": reg.total_variation(field),
        "z_variance": reg.z_variance(out), "distortion": reg.distortion(out),
    }  # fmt: skip
    assert losses == pytest.approx({name: value.item() for name, value in expected.items()})
    assert len(set(losses.values())) == 8


def dense(weights: torch.Tensor, edges: torch.Tensor, pixels: int = 0) -> RenderOutput:
    """Rays (M, S) with those weights between (M, S + 1) edges, in an image of as many pixels, M unless named."""
    rays, none = torch.arange(len(weights)), torch.empty(0)
    opacity = torch.zeros(pixels or len(weights))
    starts, ends = edges[:, :-1], edges[:, 1:]
    return RenderOutput(none, opacity, none, weights, none, starts, ends, none, none, rays)


def packed(out: RenderOutput) -> RenderOutput:
    """The same samples one after another; every second ray of the image has some."""
    samples = {name: getattr(out, name).flatten() for name in ("weights", "t_starts", "t_ends")}
    rays = (2 * out.ray_indices).repeat_interleave(out.weights.shape[1])
    return replace(out, **samples, ray_indices=rays, opacity=torch.zeros(2 * len(out.weights)))


def random_rays() -> RenderOutput:
    generator = torch.Generator().manual_seed(0)
    w = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    w = w / w.sum(1, keepdim=True) * torch.tensor([[0.9], [0.3], [0.6], [1.0], [0.0]])
    edges = 2 + torch.rand(5, 8, generator=generator, dtype=torch.float64).cumsum(1)
    return dense(w.requires_grad_(), edges)


def test_z_variance_is_that_of_the_distance_over_opaque_rays() -> None:
    edges = torch.tensor([[0.0, 2, 4, 6]]).expand(3, 4)  # samples at 1, 3 and 5
    weights = torch.tensor([[0.25, 0, 0.75], [0, 0.6, 0], [0.2, 0, 0.2]])  # variances 3, 0 and, hardly there, 4
    assert reg.z_variance(dense(weights, edges)).item() == pytest.approx((3 + 0) / 2)
    assert reg.z_variance(dense(0.4 * weights, edges)).item() == 0


def test_distortion_is_the_sum_over_pairs_of_samples() -> None:
    out = random_rays()
    t, w = (out.t_starts + out.t_ends) / 2, out.weights
    pairs = (w[:, :, None] * w[:, None] * (t[:, :, None] - t[:, None]).abs()).sum()
    own = (w**2 * (out.t_ends - out.t_starts)).sum() / 3
    torch.testing.assert_close(reg.distortion(out), (pairs + own) / 5)
    torch.testing.assert_close(reg.distortion(replace(out, opacity=torch.zeros(20))), (pairs + own) / 20)


@pytest.mark.parametrize("loss", [reg.z_variance, reg.distortion])
def test_packed_samples_have_the_loss_and_gradient_of_dense_ones(loss: Callable[[RenderOutput], torch.Tensor]) -> None:
    out = random_rays()
    other = packed(out)
    share = 2.0 if loss is reg.distortion else 1.0  # its mean is over all pixels
    torch.testing.assert_close(share * loss(other), loss(out))
    (gradient,), (same,) = (torch.autograd.grad(f * loss(o), out.weights) for f, o in ((1.0, out), (share, other)))
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(same, gradient)
    assert torch.autograd.gradcheck(lambda w: loss(replace(out, weights=w)), out.weights)


def test_orientation_separates_a_ball_from_a_hollow() -> None:
    """The blob's normals face the camera; with the density turned inside out they face away."""
    field = VoxelGridField(FieldOptions(resolution=24))
    rays = orbit(1, distance=2.5).rays(12, 12)
    ball = reg.render_orientation(field, VolumeRenderer(field)(rays))
    with torch.no_grad():
        field.grid[..., 0] *= -0.3
    hollow = reg.render_orientation(field, VolumeRenderer(field)(rays))
    hollow.backward()
    assert field.grid.grad is not None
    assert hollow > 5 * ball


def test_total_variation_of_a_ramp() -> None:
    field = VoxelGridField(FieldOptions(resolution=4))
    ramp = torch.arange(4.0)
    with torch.no_grad():
        field.grid.zero_()
        field.grid[..., 0] = 2 * ramp[:, None, None]  # density rises by 2 along x
        field.grid[..., 1] = 3 * ramp  # red rises by 3 along z
    assert reg.total_variation(field).item() == pytest.approx((4 + 9) / 4)  # mean over four channels
    assert reg.total_variation(field, color=False).item() == pytest.approx(4)
    assert reg.total_variation(field, density=False).item() == pytest.approx(9 / 3)
