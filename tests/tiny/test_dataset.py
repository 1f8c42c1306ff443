"""The training set: views, colors, images on any background, and folders that are opened again."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carv_3d.errors import CarvError
from carv_3d.tiny import dataset
from carv_3d.tiny.dataset import Images, build, draw_view, object_colors, source_hash
from carv_3d.tiny.render import Shot, render
from carv_3d.tiny.vocabulary import COLORS, MATERIALS, OBJECTS, held_out_combinations


def silent(message: str) -> None:
    """In place of print."""


def test_dataset_is_seeded_reopened_and_never_shows_a_held_out_combination(tmp_path) -> None:
    first = build(tmp_path / "a", 60, seed=5, log=silent)
    second = build(tmp_path / "b", 60, seed=5, log=silent)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    stamp = (tmp_path / "a" / "rgb.npy").stat().st_mtime_ns
    again = build(tmp_path / "a", 60, seed=5, log=silent)
    assert (tmp_path / "a" / "rgb.npy").stat().st_mtime_ns == stamp
    assert again.shots == first.shots
    assert not {(s.obj, s.color) for s in first.shots} & held_out_combinations()


def test_a_background_put_in_later_equals_one_rendered(tmp_path) -> None:
    images = build(tmp_path, 6, seed=7, log=silent)
    grey = (0.8, 0.7, 0.9)
    shots = [Shot(**{**s.__dict__, "background": grey}) for s in images.shots]
    rendered = render(shots)[0] / 255
    composed = images.on(np.arange(6), np.tile(np.array([grey]), (6, 1)))
    np.testing.assert_allclose(composed, rendered, atol=1.2 / 255)


def test_larger_images_show_the_same_shots_and_are_another_folder(tmp_path) -> None:
    small, large = (build(tmp_path / str(size), 6, seed=7, log=silent, size=size) for size in (64, 128))
    assert small.shots == large.shots
    assert large.rgb.shape == (6, 128, 128, 3)
    assert large.alpha.shape == (6, 128, 128)
    halved = large.rgb.reshape(6, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - small.rgb).mean() < 1.5  # of 255: the finer rays see the same scene
    assert build(tmp_path / "64", 6, seed=7, log=silent, size=128).rgb.shape == large.rgb.shape


def test_views_come_from_all_around_and_a_quarter_from_above() -> None:
    rng = random.Random(0)
    views = [draw_view(rng, object_colors()) for _ in range(2000)]
    assert all(len({(s.obj, s.elevation, s.azimuth, s.distance, s.fovy) for s in shots}) == 1 for shots in views)
    assert all(len({s.color for s in shots}) == 3 for shots in views)
    first = [shots[0] for shots in views]
    quarters = Counter(int(s.azimuth // 90) for s in first)
    assert set(quarters) == {0, 1, 2, 3}
    assert all(abs(n / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5 for n in quarters.values())
    above = np.array([s.elevation > 45 for s in first])
    assert abs(above.mean() - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    for values, low, high in (
        ([s.elevation for s in first if s.elevation > 45], 45, 90),
        ([s.elevation for s in first if s.elevation <= 45], -10, 45),
        ([s.distance for s in first], 2.5, 3.0),
        ([s.fovy for s in first], 36, 42),
    ):
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high
    materials = Counter(s.material for shots in views for s in shots)
    for material, share in zip(MATERIALS, (0.5, 0.25, 0.25)):
        assert abs(materials[material] / 6000 - share) < 4 * (share * (1 - share) / 6000) ** 0.5
    assert len({s.obj for s in first}) == len(OBJECTS)


def test_held_out_combinations_are_shown_to_the_classifier_alone() -> None:
    shown = {(o, c) for o, colors in object_colors().items() for c in colors}
    assert shown == {(o, c) for o in OBJECTS for c in COLORS} - held_out_combinations()
    assert object_colors(training_only=False) == {o: list(COLORS) for o in OBJECTS}


def test_a_background_shows_where_the_object_does_not_cover() -> None:
    rgb = np.array([[[[255, 255, 255]], [[150, 100, 50]], [[200, 180, 160]]]], np.uint8)  # on white
    alpha = np.array([[[0], [255], [102]]], np.uint8)
    on = Images(rgb, alpha, []).on(np.array([0]), np.array([[0.2, 0.5, 1.0]]))
    assert on.dtype == np.float32
    np.testing.assert_allclose(on[0, 0, 0], [0.2, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(on[0, 1, 0], np.array([150, 100, 50]) / 255, atol=1e-6)
    np.testing.assert_allclose(on[0, 2, 0], np.array([200, 180, 160]) / 255 - 0.6 * (1 - np.array([0.2, 0.5, 1.0])))


def test_the_recipe_has_the_name_that_the_first_version_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_hash() == "47c5220b6e14"
    names = {source_hash()}
    for module, name, value in (
        (dataset, "RECIPE", 2),
        (dataset, "MATERIAL_SHARE", (0.4, 0.3, 0.3)),
        (dataset, "COLORINGS", 4),
        (dataset, "FOVY", (36.0, 43.0)),
        (dataset, "DISTANCE", (2.4, 3.0)),
        (dataset, "RADIUS", 0.85),
        (dataset, "COLORS", dict(reversed(COLORS.items()))),
        (dataset, "OBJECTS", dict(reversed(OBJECTS.items()))),
        (dataset, "held_out_combinations", frozenset),
        (dataset.objects, "OBJECTS", {**dataset.objects.OBJECTS, "mug": dataset.objects.OBJECTS["car"]}),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, value)
            names.add(source_hash())
    assert len(names) == 11


def test_images_are_what_the_recipe_made_so_far() -> None:
    """Means over the quarters of three images. Where they change, RECIPE must be raised."""
    shots = [
        Shot("mug", "red", "striped"),
        Shot("car", "blue", "spotted", 60.0, 200.0, 2.5, 42.0),
        Shot("robot", "white", "plain", -10.0, 80.0, 3.0, 36.0, (0.2, 0.4, 0.6)),
    ]
    rgb, alpha = render(shots)
    quarters = [
        [[[232.7, 187.0, 186.3], [238.6, 212.2, 211.7]], [[233.2, 192.8, 191.8], [238.4, 215.6, 214.9]]],
        [[[222.1, 226.3, 243.2], [204.8, 210.6, 233.9]], [[177.1, 187.9, 227.6], [214.8, 219.5, 237.0]]],
        [[[74.2, 117.6, 160.4], [80.8, 121.3, 161.7]], [[72.9, 115.0, 157.2], [81.3, 120.8, 160.9]]],
    ]
    np.testing.assert_allclose(rgb.reshape(3, 2, 32, 2, 32, 3).mean((2, 4)), quarters, atol=0.3)
    np.testing.assert_allclose((alpha / 255).mean((1, 2)), [0.318, 0.2882, 0.1928], atol=1e-3)
    view = draw_view(random.Random(11), object_colors())
    assert [(s.obj, s.color, s.material) for s in view] == [
        ("rabbit", "green", "plain"),
        ("rabbit", "yellow", "striped"),
        ("rabbit", "brown", "plain"),
    ]
    assert (view[0].elevation, view[0].azimuth) == pytest.approx((37.12746535, 281.23849994))


def edited(folder: Path, change: Any) -> None:
    stored = json.loads((folder / "shots.json").read_text())
    change(stored)
    (folder / "shots.json").write_text(json.dumps(stored))


def test_a_folder_of_the_first_version_is_opened(tmp_path: Path) -> None:
    fresh = build(tmp_path, 4, seed=3, training_only=False, log=silent)

    def as_it_was(stored: dict[str, Any]) -> None:
        stored["made_with"]["seen_only"] = stored["made_with"].pop("training_only")
        for shot in stored["shots"]:
            shot["colour"], shot["finish"] = shot.pop("color"), shot.pop("material")

    edited(tmp_path, as_it_was)
    said: list[str] = []
    again = build(tmp_path, 4, seed=3, training_only=False, log=said.append)
    assert again.shots == fresh.shots
    assert said == []
    assert isinstance(again.rgb, np.memmap)


@pytest.mark.parametrize("change", [{"count": 5}, {"seed": 4}, {"training_only": True}])
def test_a_folder_made_with_other_arguments_is_made_again(change: dict[str, Any], tmp_path: Path) -> None:
    build(tmp_path, 4, seed=3, training_only=False, log=silent)
    said: list[str] = []
    made = build(tmp_path, **{"count": 4, "seed": 3, "training_only": False, **change}, log=said.append)
    count = len(made.shots)
    assert count == change.get("count", 4)
    assert said == [f"rendered {count} of {count} images"]
    assert made.rgb.shape == (count, 64, 64, 3)


def test_a_damaged_folder_is_one_sentence_with_its_fix(tmp_path: Path) -> None:
    build(tmp_path, 3, seed=3, log=silent)
    whole = (tmp_path / "shots.json").read_text()
    pixels = (tmp_path / "rgb.npy").read_bytes()
    for text, kept in (
        ("{", pixels),
        ("{}", pixels),
        (whole.replace("azimuth", "angle"), pixels),
        (whole, pixels[:90]),
    ):
        (tmp_path / "shots.json").write_text(text)
        (tmp_path / "rgb.npy").write_bytes(kept)
        with pytest.raises(CarvError, match=r"delete .*, and its images are made again"):
            build(tmp_path, 3, seed=3, log=silent)
