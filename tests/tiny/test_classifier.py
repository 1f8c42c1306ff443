import math
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from carv_3d.errors import CarvError
from carv_3d.tiny import classifier as tiny
from carv_3d.tiny.render import Shot
from carv_3d.tiny.vocabulary import COLORS, OBJECTS


def test_logits_have_a_class_for_each_answer() -> None:
    logits = tiny.Classifier().eval()(torch.rand(2, 3, 64, 64))
    assert {k: tuple(x.shape) for k, x in logits.items()} == {k: (2, n) for k, n in tiny.CLASSES.items()}


def test_classes_are_those_of_the_shot_and_the_side_of_a_round_object_is_ignored() -> None:
    shots = [
        Shot("car", "red", azimuth=90),
        Shot("car", "blue", "striped", elevation=75),
        Shot("bowl", "gray", "spotted", elevation=75),
        Shot("bowl", "red", azimuth=90),
    ]
    objects, colors = list(OBJECTS), list(COLORS)
    assert tiny.shot_classes(shots).tolist() == [
        [objects.index("car"), colors.index("red"), 0, tiny.VIEWS.index("left view")],
        [objects.index("car"), colors.index("blue"), 1, tiny.VIEWS.index("overhead view")],
        [objects.index("bowl"), colors.index("gray"), 2, tiny.VIEWS.index("overhead view")],
        [objects.index("bowl"), colors.index("red"), 0, tiny.IGNORE],
    ]
    assert list(tiny.CLASSES) == ["object", "color", "material", "view"]


def test_features_are_a_map_of_two_by_two_and_logits_their_heads() -> None:
    classifier, x = tiny.Classifier().eval(), torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = classifier.features(x)
    assert features.shape == (3, 640)
    torch.testing.assert_close(classifier(x)["view"], classifier.heads["view"](features))
    shifted = x.clone()
    shifted[..., :20, :20] = 0.0  # the upper left quarter is the first of each four
    moved = (classifier.features(shifted) - features).abs().view(3, 160, 4).sum((0, 1))
    assert moved.argmax() == 0


def test_augmentation_keeps_range_and_differs_between_images() -> None:
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = tiny.augment(x[:1].expand(4, -1, -1, -1), torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    assert 0 <= y.min() <= y.max() <= 1
    assert (y[0] - y[1]).abs().mean() > 0.01


def test_augmentation_of_a_plain_gray_is_brightness_and_noise() -> None:
    y = tiny.augment(torch.full((400, 3, 16, 16), 0.5), torch.Generator().manual_seed(0))
    bias, noise = y.mean((1, 2, 3)) - 0.5, y.std((1, 2, 3))
    assert 0.045 < float(bias.abs().max()) < 0.06
    assert abs(float(bias.mean())) < 4 * 0.1 / 12**0.5 / 20
    assert 0.055 < float(noise.max()) < 0.065
    assert float(noise.min()) < 0.002
    assert float(noise.mean()) == pytest.approx(0.03, rel=0.1)


def test_augmentation_moves_and_scales_by_little() -> None:
    x = torch.zeros(300, 3, 64, 64)
    x[:, :, 24:40, 24:40] = 0.8
    y = (tiny.augment(x, torch.Generator().manual_seed(0)).mean(1) - 0.4).clamp_min(0)
    mass = y.sum((1, 2))
    middle = torch.arange(64.0) + 0.5 - 32
    for axis in (1, 2):
        offset = (y.sum(axis) * middle).sum(1) / mass
        assert 3.0 < float(offset.abs().max()) < 5.0  # 0.12 of half the image, over the scale
        assert abs(float(offset.mean())) < 0.6
    area = (y > 0.1).sum((1, 2)).float().sqrt()
    assert 12.5 < float(area.min()) < 14.5  # 16 over 1.2
    assert 17.5 < float(area.max()) < 20.5  # 16 over 0.85


def test_training_learns_from_its_own_renders_and_writes_half_precision(tmp_path, monkeypatch) -> None:
    asked, losses = {}, []

    def stage(name, module, step_loss, options, folder, made_with):
        asked.update(asdict(options), name=name, made_with=made_with)
        losses.append(step_loss(0, torch.Generator().manual_seed(0)).item())
        with torch.no_grad():  # one that names everything wrong, surely
            for head in module.heads.values():
                head[2].weight.zero_()
                head[2].bias.copy_(-100.0 * (torch.arange(len(head[2].bias)) % 2))
            losses.append(step_loss(0, torch.Generator().manual_seed(0)).item())
        return module.state_dict()

    monkeypatch.setattr("carv_3d.tiny.stage.run_stage", stage)
    tiny.train(tmp_path / "work", tmp_path / "out" / "c.safetensors", images=6, steps=7, seed=3)
    assert {k: asked[k] for k in ("name", "steps", "lr", "seed", "ema")} == {
        "name": "classifier", "steps": 7, "lr": 3e-3, "seed": 10, "ema": 0.99,
    }  # fmt: skip
    assert asked["made_with"] == {"images": 6, "seed": 3, "objects": "47c5220b6e14"}
    assert sum(math.log(n) for n in tiny.CLASSES.values()) == pytest.approx(losses[0], rel=0.2)  # four even guesses
    assert losses[1] > 3 * losses[0]
    stored = load_file(tmp_path / "out" / "c.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    assert tiny.Classifier.load(tmp_path / "out" / "c.safetensors").heads["view"][2].bias[1] == -100
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.safetensors"]


def test_saved_weights_come_back_and_damaged_ones_are_refused(tmp_path) -> None:
    torch.manual_seed(0)
    classifier, path = tiny.Classifier().eval(), tmp_path / "classifier.safetensors"
    with pytest.raises(CarvError, match=r"classifier\.safetensors"):
        tiny.Classifier.load(path)
    save_file({k: (v.half() if v.is_floating_point() else v) for k, v in classifier.state_dict().items()}, path)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(tiny.Classifier.load(path)(x)["object"], classifier(x)["object"], atol=1e-2, rtol=1e-2)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CarvError, match="is cut off at 1000 bytes"):
        tiny.Classifier.load(path)
