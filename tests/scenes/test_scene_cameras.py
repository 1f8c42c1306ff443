"""Cameras: threestudio's conventions, known pixels, the statistics of the sampler, words for views."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.scenes.cameras import CameraOptions, Cameras, orbit, sample_cameras, view_phrase


def test_azimuth_zero_stands_on_plus_x_and_looks_at_the_front() -> None:
    camera = orbit(1, elevation=0.0, distance=2.0, fovy=60.0)
    torch.testing.assert_close(camera.position, torch.tensor([[2.0, 0.0, 0.0]]))
    right, up, backward = camera.c2w[0, :, 0], camera.c2w[0, :, 1], camera.c2w[0, :, 2]
    torch.testing.assert_close(right, torch.tensor([0.0, 1.0, 0.0]))  # the object's left is on the right
    torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(backward, torch.tensor([1.0, 0.0, 0.0]))


def test_position_formula() -> None:
    camera = orbit(1, elevation=30.0, distance=3.0, start=60.0)
    el, az = math.radians(30), math.radians(60)
    expected = [3 * math.cos(el) * math.cos(az), 3 * math.cos(el) * math.sin(az), 3 * math.sin(el)]
    torch.testing.assert_close(camera.position[0], torch.tensor(expected))


def test_known_pixels() -> None:
    camera = orbit(1, elevation=0.0, distance=2.0, fovy=90.0)  # focal length: half the height
    points = torch.tensor([[0.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0], [1.0, 0.5, -0.5]])
    pixel, depth = camera.project(points, height=64, width=48)
    expected = torch.tensor([[24.0, 32.0], [24.0, 16.0], [40.0, 32.0], [40.0, 48.0]])
    torch.testing.assert_close(pixel[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0], torch.tensor([2.0, 2.0, 2.0, 1.0]))


def test_rays_go_through_their_own_pixel_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    options = CameraOptions(camera_perturb=0.1, center_perturb=0.2, up_perturb=0.05)
    cameras = sample_cameras(options, 3, generator)
    rays = cameras.rays(5, 7)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(3, 5, 7))
    row, column = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    for b in range(3):
        points = (rays.origins[b] + 1.7 * rays.directions[b]).view(-1, 3)
        pixel, _ = cameras[b].project(points, 5, 7)
        torch.testing.assert_close(pixel[0], torch.stack([column, row], -1).view(-1, 2), atol=1e-4, rtol=0)


def test_poses_are_rotations_also_at_the_poles() -> None:
    cameras = orbit(12, elevation=[-90.0, 20.0, 90.0], start=10.0)
    R = cameras.c2w[:, :, :3]
    torch.testing.assert_close(R.transpose(1, 2) @ R, torch.eye(3).expand(12, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(12))
    near_pole = orbit(4, elevation=89.9, start=10.0)  # the pole is the limit of the climb
    torch.testing.assert_close(cameras[8:].c2w[:, :, :3], near_pole.c2w[:, :, :3], atol=5e-3, rtol=0)


def test_orbit_is_even_and_loops() -> None:
    cameras = orbit(8, elevation=15.0)
    assert cameras.azimuth.tolist() == [0, 45, 90, 135, 180, 225, 270, 315]
    rings = orbit(16, elevation=[0.0, 30.0])
    assert rings.azimuth.tolist() == cameras.azimuth.tolist() * 2
    assert rings.elevation.tolist() == [0.0] * 8 + [30.0] * 8
    with pytest.raises(CarvError, match="16 views"):
        orbit(16, elevation=[0.0, 10.0, 20.0])


def test_sampler_keeps_its_ranges_and_shares_out_the_azimuth() -> None:
    options = CameraOptions(elevation_range=(-10, 80), azimuth_range=(-90, 90))
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        c = sample_cameras(options, 6, generator)
        assert c.elevation.min() >= -10
        assert c.elevation.max() <= 80
        assert ((c.distance >= 1.5) & (c.distance <= 2.0)).all()
        assert ((c.fovy >= 40) & (c.fovy <= 70)).all()
        assert torch.equal(((c.azimuth + 90) / 30).floor(), torch.arange(6.0))
    assert torch.equal(
        sample_cameras(options, 6, torch.Generator().manual_seed(7)).c2w,
        sample_cameras(options, 6, torch.Generator().manual_seed(7)).c2w,
    )


def test_elevation_is_half_uniform_in_angle_and_half_uniform_on_the_sphere() -> None:
    generator = torch.Generator().manual_seed(2)
    options = CameraOptions(elevation_range=(0, 90))
    draws = torch.stack([sample_cameras(options, 16, generator).elevation for _ in range(600)])
    # mean of the sine: 2/pi where the angle is uniform, 1/2 where the height is
    per_batch = torch.sin(torch.deg2rad(draws)).mean(dim=1)
    expected = 0.5 * (2 / math.pi + 0.5)
    assert abs(per_batch.mean().item() - expected) < 4 * per_batch.std().item() / math.sqrt(600)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fovy_range", (70, 40)),
        ("fovy_range", (0, 40)),
        ("fovy_range", (40, 180)),
        ("elevation_range", (-100, 40)),
        ("elevation_range", (0, 91)),
        ("azimuth_range", (10, -10)),
        ("camera_distance_range", (0, 1)),
        ("camera_distance_range", (1, 2, 3)),
        ("height", 0),
        ("width", 0),
        ("batch_size", 0),
        ("eval_height", 0),
        ("eval_width", 0),
        ("n_test_views", 0),
        ("eval_elevation_deg", 91.0),
        ("eval_camera_distance", 0.0),
        ("eval_fovy_deg", 180.0),
        ("camera_perturb", -0.1),
        ("center_perturb", -0.1),
        ("up_perturb", -0.1),
        ("progressive_until", -1),
    ],
)
def test_options_name_what_is_wrong(option: str, value: object) -> None:
    with pytest.raises(CarvError, match=f"^{option} is "):
        CameraOptions(**{option: value})  # type: ignore[arg-type]


def test_ranges_are_pairs_of_numbers() -> None:
    assert CameraOptions(fovy_range=[20, 30]).fovy_range == (20.0, 30.0)  # type: ignore[arg-type]
    same = CameraOptions(elevation_range=(90, 90), azimuth_range=(0, 0), height=1, progressive_until=0)
    assert same.elevation_range == (90.0, 90.0)


def draw(count: int, seed: int = 0, **options: object) -> Cameras:
    return sample_cameras(CameraOptions(batch_size=count, **options), None, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_the_batch_is_as_large_and_ranges_as_wide_as_the_options_have_them() -> None:
    ranges = {
        "elevation_range": (10, 20), "azimuth_range": (30, 50), "camera_distance_range": (3, 5), "fovy_range": (15, 25),
    }  # fmt: skip
    cameras = draw(1000, **ranges)
    assert len(cameras) == 1000
    drawn = {"elevation_range": cameras.elevation, "azimuth_range": cameras.azimuth,
             "camera_distance_range": cameras.distance, "fovy_range": cameras.fovy}  # fmt: skip
    for name, (low, high) in ranges.items():
        assert low <= float(drawn[name].min()) < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < float(drawn[name].max()) <= high, name
        assert float(drawn[name].mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low)), name
    pairs = torch.corrcoef(torch.stack([cameras.azimuth, cameras.distance, cameras.fovy]))
    assert float((pairs - torch.eye(3)).abs().max()) < 4 / 1000**0.5  # each has draws of its own


def test_azimuths_of_a_batch_are_apart_or_independent() -> None:
    apart, free = draw(50), draw(50, batch_uniform_azimuth=False)
    assert torch.equal(((apart.azimuth + 180) / 7.2).floor(), torch.arange(50.0))
    assert len(((free.azimuth + 180) / 7.2).floor().unique()) < 45
    torch.testing.assert_close((free.azimuth + 180) / 360, ((apart.azimuth + 180) / 7.2).frac(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("option", ["camera_perturb", "center_perturb", "up_perturb"])
def test_each_perturbation_moves_its_own_part(option: str) -> None:
    plain, moved = draw(2000), draw(2000, **{option: 0.1})
    torch.testing.assert_close(moved.elevation, plain.elevation)  # prompts go by the nominal camera
    assert torch.equal(moved.azimuth, plain.azimuth)
    shift = moved.position - plain.position
    forward = [-c.c2w[:, :, 2] for c in (plain, moved)]
    if option == "camera_perturb":
        assert float(shift.std()) == pytest.approx(0.1, rel=0.05)
        torch.testing.assert_close(forward[1], -moved.position / moved.position.norm(dim=1, keepdim=True))
        return
    assert torch.equal(shift, torch.zeros_like(shift))
    if option == "up_perturb":
        torch.testing.assert_close(forward[1], forward[0])
        tilt = (moved.c2w[:, :, 0] * plain.c2w[:, :, 1]).sum(1)  # how far `right` leaves the horizontal
        assert 0.05 < float(tilt.std()) < 0.2
        return
    # the nearest point of the axis to the origin: the part of the center's shift across the axis, two of three axes
    nearest = moved.position - (moved.position * forward[1]).sum(1, keepdim=True) * forward[1]
    assert float(nearest.square().sum(1).mean()) == pytest.approx(2 * 0.1**2, rel=0.1)


def test_progress_counts_only_where_a_step_is_given() -> None:
    options = CameraOptions(azimuth_range=(-90, 90), progressive_until=9, eval_elevation_deg=12)
    at_first = sample_cameras(options, 4, torch.Generator().manual_seed(0), step=0)
    assert at_first.azimuth.tolist() == [0.0] * 4
    torch.testing.assert_close(at_first.elevation, torch.full((4,), 12.0))
    halfway = sample_cameras(options, 400, torch.Generator().manual_seed(0), step=5)
    assert float(halfway.azimuth.abs().max()) == pytest.approx(45, abs=1)
    for step in (10, None):
        full = sample_cameras(options, 400, torch.Generator().manual_seed(0), step=step)
        assert float(full.azimuth.abs().max()) == pytest.approx(90, abs=1)


def test_an_orbit_takes_the_evaluation_view_of_the_options() -> None:
    options = CameraOptions(eval_elevation_deg=33.0, eval_camera_distance=2.25, eval_fovy_deg=41.0)
    cameras = orbit(3, start=10.0, options=options)
    assert cameras.elevation.tolist() == [33.0] * 3
    assert cameras.distance.tolist() == [2.25] * 3
    assert cameras.fovy.tolist() == [41.0] * 3
    assert cameras.azimuth.tolist() == [10.0, 130.0, 250.0]
    torch.testing.assert_close(cameras.position.norm(dim=1), torch.full((3,), 2.25))
    for views, elevation in ((0, 10.0), (3, [])):
        with pytest.raises(CarvError, match=f"^{views} views"):
            orbit(views, elevation=elevation)


def test_parts_of_a_batch_are_batches() -> None:
    cameras = orbit(4)
    for index, azimuths in (
        (-1, [270.0]),
        (1, [90.0]),
        (slice(1, 3), [90.0, 180.0]),
        (torch.tensor([3, 0]), [270.0, 0.0]),
    ):
        part = cameras[index]
        assert part.azimuth.tolist() == azimuths
        assert part.c2w.shape == (len(azimuths), 3, 4)
    assert cameras.to("cpu").fovy.tolist() == cameras.fovy.tolist()
    assert cameras.focal(100)[0].item() == pytest.approx(50 / math.tan(math.radians(35)))


def test_ranges_grow_until_progressive_until() -> None:
    options = CameraOptions(elevation_range=(-10, 50), eval_elevation_deg=10, progressive_until=99)
    assert options.at_step(0).azimuth_range == (0.0, 0.0)
    assert options.at_step(50).elevation_range == (0.0, 30.0)
    assert options.at_step(1000).azimuth_range == (-180.0, 180.0)


@pytest.mark.parametrize(
    ("azimuth", "phrase"),
    [
        (0, "front view"),
        (22.4, "front view"),
        (22.5, "front left view"),
        (45, "front left view"),
        (90, "left view"),
        (135, "back left view"),
        (180, "back view"),
        (-180, "back view"),
        (-157.6, "back view"),
        (-135, "back right view"),
        (-90, "right view"),
        (270, "right view"),
        (-45, "front right view"),
        (-22.5, "front view"),
        (720, "front view"),
    ],
)
def test_fine_phrases(azimuth: float, phrase: str) -> None:
    assert view_phrase(60.0, azimuth) == phrase
    assert view_phrase(60.1, azimuth) == "overhead view"


def test_coarse_phrases_follow_threestudio() -> None:
    pairs = {44.9: "front", 45.0: "side", 135.0: "side", 135.1: "back", 181.0: "back", -90.0: "side"}
    for azimuth, word in pairs.items():
        assert view_phrase(0.0, azimuth, fine=False) == f"{word} view"
    assert view_phrase(61.0, 0.0, fine=False) == "overhead view"
    azimuths = orbit(4, elevation=0.0).azimuth.tolist()
    assert [view_phrase(0.0, a) for a in azimuths] == ["front view", "left view", "back view", "right view"]
    with pytest.raises(CarvError, match="elevation"):
        view_phrase(91.0, 0.0)


def spread(n_steps: int, batch: int, seed: int, sampling: str = "low_discrepancy") -> torch.Tensor:
    """(n_steps, batch, 4): elevation, azimuth, distance and field of view of a run's cameras."""
    options = CameraOptions(camera_sampling=sampling)
    g = torch.Generator().manual_seed(seed)
    rows = [sample_cameras(options, batch, g, step) for step in range(n_steps)]
    return torch.stack([torch.stack([c.elevation, c.azimuth, c.distance, c.fovy], 1) for c in rows])


def test_each_camera_of_a_sequence_has_the_distribution_of_a_random_one() -> None:
    for step, place in ((0, 0), (2, 1)):
        values = torch.stack([spread(step + 1, 2, seed)[step, place] for seed in range(400)])
        expected = spread(3000, 2, 0, "random").flatten(0, 1)
        for power in (1, 2):
            a, b = (values / 50) ** power, (expected / 50) ** power
            error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
            assert float(((a.mean(0) - b.mean(0)) / error).abs().max()) < 4


@pytest.mark.parametrize("uniform", [True, False])
def test_antipodal_cameras_stand_on_opposite_sides(uniform: bool) -> None:
    options = CameraOptions(camera_sampling="antipodal", batch_size=4, batch_uniform_azimuth=uniform)
    cameras = sample_cameras(options, generator=torch.Generator().manual_seed(0))
    apart = (cameras.azimuth[2:] - cameras.azimuth[:2]) % 360
    torch.testing.assert_close(apart, torch.full((2,), 180.0))
    assert len(set(cameras.elevation.tolist())) == 4  # drawn for each
    narrow = replace(options, azimuth_range=(-90.0, 90.0))
    azimuth = sample_cameras(narrow, generator=torch.Generator().manual_seed(0)).azimuth
    torch.testing.assert_close((azimuth[2:] - azimuth[:2]) % 180, torch.full((2,), 90.0))
    assert float(azimuth.abs().max()) <= 90


def test_each_antipodal_camera_has_the_distribution_of_a_random_one() -> None:
    """So the objective stays: the expectation over each render is that of independent cameras."""
    g = torch.Generator().manual_seed(0)
    options = CameraOptions(camera_sampling="antipodal", batch_size=2, batch_uniform_azimuth=False)
    drawn = [sample_cameras(options, generator=g) for _ in range(3000)]
    expected = spread(3000, 2, 1, "random").flatten(0, 1)
    for place in range(2):
        values = torch.stack([torch.stack([c.elevation, c.azimuth, c.distance, c.fovy], 1)[place] for c in drawn])
        for power in (1, 2):
            a, b = (values / 50) ** power, (expected / 50) ** power
            error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
            assert float(((a.mean(0) - b.mean(0)) / error).abs().max()) < 4


def test_antipodal_cameras_are_drawn_in_pairs() -> None:
    with pytest.raises(CarvError, match="batch_size is 3: make it even"):
        CameraOptions(camera_sampling="antipodal", batch_size=3)
    with pytest.raises(CarvError, match="batch_size is 1: make it even"):
        sample_cameras(CameraOptions(camera_sampling="antipodal", batch_size=2), 1)


def test_a_sequence_lies_more_evenly_and_is_the_same_again() -> None:
    def brightness(c: torch.Tensor) -> torch.Tensor:  # any smooth function of the camera
        return (c[..., 1].deg2rad().sin() + 0.3 * c[..., 0].deg2rad().sin() * c[..., 2]).mean((0, 1))

    variance = {
        sampling: torch.stack([brightness(spread(16, 2, seed, sampling)) for seed in range(60)]).var()
        for sampling in ("random", "low_discrepancy")
    }
    assert variance["low_discrepancy"] < 0.3 * variance["random"]
    assert torch.equal(spread(4, 2, 5), spread(8, 2, 5)[:4])  # without a state to resume
    assert not torch.equal(spread(4, 2, 5), spread(4, 2, 6))


def test_a_sequence_needs_its_step() -> None:
    with pytest.raises(CarvError, match="number of the step"):
        sample_cameras(CameraOptions(camera_sampling="low_discrepancy"), 1)
    with pytest.raises(CarvError, match="camera_sampling is 'sobol'"):
        CameraOptions(camera_sampling="sobol")
