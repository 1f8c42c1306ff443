"""The compiled hash grid against torch in float64: values, gradients, layout, empty cells, threads, a run's state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_host import tiny_config
from torch import Tensor

from carv_3d.generate.trainer import TextTo3D
from carv_3d.scenes.cameras import orbit
from carv_3d.scenes.fields import FieldOptions, FusedHashField
from carv_3d.scenes.fused import RaySamples, render_fused, render_reference
from carv_3d.scenes.hash_layout import HashLayout, encode_reference
from carv_3d.scenes.rendering import RenderOptions, VolumeRenderer, ray_sphere
from carv_3d.scenes.trilinear import numba_available

pytestmark = pytest.mark.skipif(not numba_available(), reason="numba is not installed: there is one path")


def made(seed: int = 0, **options: Any) -> FusedHashField:
    """A field with dense and hashed levels, away from its beginning."""
    torch.manual_seed(seed)
    small = {"n_levels": 5, "log2_hashmap_size": 10, "base_resolution": 5, "n_neurons": 16, "per_level_scale": 1.6}
    field = FusedHashField(FieldOptions(**{**small, **options}))
    with torch.no_grad():
        field.encoding.params.mul_(5000)
    return field


def close(fast: Tensor, exact: Tensor) -> None:
    """To 1e-5 of the exact value's norm."""
    exact = exact.detach()
    assert fast.shape == exact.shape
    assert float((fast.detach().double() - exact).norm() / exact.norm()) < 1e-5


def samples(n_rays: int = 40, n_samples: int = 20, cells: int = 8) -> RaySamples:
    g = torch.Generator().manual_seed(3)
    o = 2.7 * torch.nn.functional.normalize(torch.randn(n_rays, 3, generator=g), dim=-1)
    d = torch.nn.functional.normalize(0.3 * torch.randn(n_rays, 3, generator=g) - o, dim=-1)
    near, far, hit = ray_sphere(o, d, 1.08)
    edges = torch.lerp(near[hit, None], far[hit, None], torch.linspace(0, 1, n_samples + 1))
    starts, ends = edges[:, :-1], edges[:, 1:]
    places = torch.lerp(starts, ends, torch.rand(starts.shape, generator=g))
    occupied = (torch.rand(cells, cells, cells, generator=g) > 0.25).to(torch.uint8)
    return RaySamples(o[hit], d[hit], starts, ends, places, occupied)


def doubled(rays: RaySamples) -> RaySamples:
    return RaySamples(*(x.double() if x.is_floating_point() else x for x in rays))


def test_logits_and_their_gradient_equal_float64() -> None:
    field, exact = made(), made().double()
    x = 2.1 * torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) - 1.05
    g = torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
    fast, slow = field.raw(x), exact.raw(x.double())
    assert type(fast.grad_fn).__name__ == "_PointsBackward"
    close(fast, slow)
    fast.backward(g)
    slow.backward(g.double())
    for p, q in zip(field.parameters(), exact.parameters()):
        assert p.grad is not None
        assert q.grad is not None
        close(p.grad, q.grad)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
def test_rays_and_their_gradient_equal_float64(which: tuple[int, ...]) -> None:
    """Of the image, of the weights, of the densities, and of all."""
    field, exact, rays = made(), made().double(), samples()
    fused = field.compiled()
    assert fused is not None
    reference = fused._replace(tensors=())
    fast, slow = render_fused(fused, rays), render_reference(exact.raw, reference, doubled(rays))
    assert bool((fast[1] == 0).any())  # some cells are empty
    assert float(fast[0].detach()[:, 3].max()) > 0.99
    upstream = [torch.randn(x.shape, generator=torch.Generator().manual_seed(4)) for x in fast]
    for part in which:
        close(fast[part], slow[part])
    torch.stack([(fast[part] * upstream[part]).sum() for part in which]).sum().backward()
    torch.stack([(slow[part] * upstream[part].double()).sum() for part in which]).sum().backward()
    for p, q in zip(field.parameters(), exact.parameters()):
        if q.grad is None:  # the density alone does not read the color's bias
            continue
        assert p.grad is not None
        close(p.grad, q.grad)


def test_the_references_gradient_equals_differences() -> None:
    layout = HashLayout.from_options(2, 2, 5, 3, 1.6)
    params = torch.randn(layout.n_rows * 2, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, y: encode_reference(p, layout, y, 2), (params, x))
    field, rays = made(n_levels=2, n_neurons=4, log2_hashmap_size=6).double(), doubled(samples(3, 4))
    settings = made(n_levels=2, n_neurons=4, log2_hashmap_size=6).compiled()
    assert settings is not None
    bias = field.head[2].bias

    def color(b: Tensor) -> Tensor:
        return render_reference(lambda p: field.raw(p).detach() - bias.detach() + b, settings, rays)[0]

    assert torch.autograd.gradcheck(color, (bias.detach().clone().requires_grad_(),))


def test_the_layout_is_tiny_cuda_nns_by_hand() -> None:
    layout = HashLayout.from_options(3, 2, 9, 4, 2.0)
    assert layout.scales.tolist() == [3.0, 7.0, 15.0]
    # 4^3 = 64 and 8^3 = 512 nodes fit a level, 16^3 share 512 rows
    assert layout.levels.tolist() == [[0, 64, 4, 0], [64, 512, 8, 0], [576, 512, 16, 1]]
    params = torch.zeros(layout.n_rows * 2)
    params[2 * (1 + 4 * (2 + 4 * 3))] = 5.0  # level 0, node (1, 2, 3), feature 0
    params[2 * (576 + ((3 ^ (2654435761 * 5) ^ (805459861 * 7)) % 512)) + 1] = 7.0  # level 2, node (3, 5, 7), feature 1
    at = torch.tensor([[0.5 / 3, 1.5 / 3, 2.5 / 3], [2.5 / 15, 4.5 / 15, 6.5 / 15]])  # scale x + 1/2 is the node
    features = encode_reference(params, layout, at, 3)
    assert float(features[0, 0]) == pytest.approx(5.0, abs=1e-4)
    assert float(features[1, 5]) == pytest.approx(7.0, abs=1e-4)
    uneven = HashLayout.from_options(1, 2, 19, 5, 2.0)
    assert uneven.levels.tolist() == [[0, 128, 5, 0]]  # 125 nodes, in eights


def test_the_gradient_does_not_depend_on_the_threads() -> None:
    rays, results, before = samples(200), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        fused = made().compiled()
        assert fused is not None
        out = render_fused(fused, rays)
        results.append(torch.autograd.grad(out[0].square().sum(), fused.tensors))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_levels_that_are_not_active_count_as_zero() -> None:
    field, x = made(), torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    field.active_levels = 2
    close(field.raw(x), field.raw_reference(x).double())
    field.raw(x).sum().backward()
    grad = field.encoding.params.grad
    assert grad is not None
    first_inactive = 2 * int(field.encoding.layout.levels[2, 0])
    assert bool((grad[:first_inactive] != 0).any())
    assert not bool((grad[first_inactive:] != 0).any())


def test_parameters_that_are_no_numbers_show() -> None:
    field = made()
    with torch.no_grad():
        field.encoding.params[0::7] = float("nan")
    out = VolumeRenderer(field).train()(orbit(1, distance=2.7).rays(8, 8))
    assert bool(out.comp_rgb.isnan().any())


def test_nothing_visible_is_skipped() -> None:
    """Of a field with thin parts, after updates whose readings are at random places."""
    field = made(blob_scale=30.0)
    options = RenderOptions(num_samples_per_ray=64, randomized=False)
    skipping, whole = (
        VolumeRenderer(field, options),
        VolumeRenderer(field, RenderOptions(**{**vars(options), "grid_prune": False})),
    )
    for step in range(4):
        skipping.update(8 * step)
    assert float(skipping.grid.cells.float().mean()) < 0.6
    rays = orbit(2, distance=2.7).rays(24, 24)
    a, b = skipping.train()(rays, torch.ones(3)), whole.train()(rays, torch.ones(3))
    assert float((a.comp_rgb - b.comp_rgb).detach().abs().max()) < 0.02
    assert float(b.weights.detach()[a.sigmas == 0].max()) < 0.01
    finished = [r.render(orbit(2, distance=2.7), 24, 24, torch.ones(3))[0] for r in (skipping, whole)]
    assert float((finished[0] - finished[1]).abs().max()) < 0.02


def test_a_faint_field_is_never_all_empty() -> None:
    """However many samples a ray has: the least density grows with them."""
    field = made(blob_scale=2.0, density_scale=2.0)
    renderer = VolumeRenderer(field, RenderOptions(num_samples_per_ray=4096))
    renderer.update(0)
    out = renderer.train()(orbit(1, distance=2.7).rays(8, 8))
    assert renderer._least_density > float(renderer.grid.peaks.max())
    assert float(out.opacity.detach().max()) > 0.9
    out.opacity.sum().backward()
    assert float(field.encoding.params.grad.abs().max()) > 0


def test_a_ray_ends_at_what_is_opaque() -> None:
    out = VolumeRenderer(made(blob_scale=200.0), RenderOptions(grid_prune=False)).train()(
        orbit(1, distance=2.7).rays(8, 8)
    )
    middle = out.weights[out.ray_indices.tolist().index(4 * 8 + 4)]
    last = int(middle.nonzero().max())
    assert last < 20  # of 36
    assert float(middle.detach().sum()) > 1 - 1e-4


FUSED = ["system.geometry_type=fused", "system.geometry.log2_hashmap_size=10", "system.loss.lambda_orient=10"]


def test_a_run_resumes_to_the_bit(sd_folder: Path, sd_teacher: Any) -> None:
    config = tiny_config(sd_folder, *FUSED)
    through = TextTo3D(config, sd_teacher)
    for _ in range(9):
        through.train_step()
    state = copy.deepcopy(through.state_dict())
    assert {"grid.peaks", "grid.cells"} <= state["renderer"].keys()
    resumed = TextTo3D(config, sd_teacher)
    resumed.load_state_dict(state)
    for host in (through, resumed):
        host.train_step()
    views = [host.views(host.orbit(1), 16, 16) for host in (through, resumed)]
    assert torch.equal(*views)
    assert all(torch.equal(a, b) for a, b in zip(through.field.parameters(), resumed.field.parameters()))
    assert torch.equal(through.renderer.grid.peaks, resumed.renderer.grid.peaks)
