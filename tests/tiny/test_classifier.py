import pytest
import torch
from safetensors.torch import save_file

from carv_3d.errors import CarvError
from carv_3d.tiny import classifier as j
from carv_3d.tiny.render import Shot


def test_logits_have_a_class_for_each_answer() -> None:
    logits = j.Classifier().eval()(torch.rand(2, 3, 64, 64))
    assert {k: tuple(x.shape) for k, x in logits.items()} == {k: (2, n) for k, n in j.CLASSES.items()}


def test_view_classes_follow_the_camera_and_spare_round_objects() -> None:
    assert j.VIEWS[j._view_class(False, Shot("car", "red", azimuth=90))] == "left view"
    assert j.VIEWS[j._view_class(False, Shot("car", "red", elevation=75))] == "overhead view"
    assert j.VIEWS[j._view_class(True, Shot("bowl", "red", elevation=75))] == "overhead view"
    assert j._view_class(True, Shot("bowl", "red", azimuth=90)) == j.IGNORE


def test_augmentation_keeps_range_and_differs_between_images() -> None:
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = j.augment(x[:1].expand(4, -1, -1, -1), torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    assert 0 <= y.min() <= y.max() <= 1
    assert (y[0] - y[1]).abs().mean() > 0.01


def test_saved_weights_come_back_and_damaged_ones_are_refused(tmp_path) -> None:
    torch.manual_seed(0)
    classifier, path = j.Classifier().eval(), tmp_path / "classifier.safetensors"
    with pytest.raises(CarvError, match=r"classifier\.safetensors"):
        j.Classifier.load(path)
    save_file({k: (v.half() if v.is_floating_point() else v) for k, v in classifier.state_dict().items()}, path)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(j.Classifier.load(path)(x)["object"], classifier(x)["object"], atol=1e-2, rtol=1e-2)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CarvError, match="damaged"):
        j.Classifier.load(path)
