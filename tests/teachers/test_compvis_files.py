"""Configurations and checkpoints in CompVis' format: what is read, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import compvis_models
import pytest
import torch
import yaml
from torch import nn

from carv_3d.errors import CarvError
from carv_3d.teachers import compvis_files as files

FIX = "take another file."


def write(folder: Path, model: Any) -> str:
    (folder / "a.yaml").write_text(yaml.safe_dump({"model": model}))
    return str(folder / "a.yaml")


def test_the_schedule_is_of_the_parameters(tmp_path: Path) -> None:
    params = {"timesteps": 10, "linear_start": 0.01, "linear_end": 0.02, "use_ema": False, "other": 1}
    model, known = files.read_model_config(write(tmp_path, {"target": "a.B", "params": params}), ["a"], FIX)
    assert model == {"target": "a.B", "params": params}
    assert not known.use_ema
    betas = torch.linspace(0.1, 0.02**0.5, 10) ** 2
    torch.testing.assert_close(known.schedule.alphas_cumprod, (1 - betas).cumprod(0))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (None, "must hold model.target and model.params, a group"),
        ({"target": "a.B"}, "must hold model.target and model.params"),
        ({"params": {}}, "must hold model.target and model.params"),
        ({"target": "a.B", "params": {"timesteps": 0}}, "model.params: timesteps is 0"),
        ({"target": "a.B", "params": {"linear_start": "x"}}, "model.params: linear_start is 'x'"),
        ({"target": "ab.C", "params": {}}, "names the class 'ab.C', and only those of a are made"),
        ({"target": "a.B", "params": {"x": [{"target": "os.system"}]}}, "names the class 'os.system'"),
        ({"target": "a.B", "params": {"x": {"target": 3}}}, "names the class 3"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_sentence(model: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(CarvError, match=re.escape(said) + f".*; {FIX}"):
        files.read_model_config(write(tmp_path, model), ["a"], FIX)


def test_a_class_with_other_parameters_is_named() -> None:
    with pytest.raises(CarvError, match=re.escape("torch.nn.Linear refuses the parameters of its configuration")):
        files.build_model({"target": "torch.nn.Linear", "params": {"size": 3}}, "torch")
    with pytest.raises(CarvError, match=re.escape("torch.nn.NoSuch cannot be imported")):
        files.build_model({"target": "torch.nn.NoSuch"}, "torch")
    assert (
        files.build_model({"target": "torch.nn.Linear", "params": {"in_features": 2, "out_features": 3}}, "")
        is not None
    )


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, file = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), tmp_path / "a.ckpt"
    whole = {name: torch.ones_like(value) for name, value in model.state_dict().items()}

    def load(tensors: dict[str, torch.Tensor], needs: tuple[str, ...] = ("0.",)) -> None:
        torch.save({"state_dict": tensors}, file)
        files.load_weights(model, file, needs)

    load({**whole, "more": torch.ones(1)})
    assert all(bool((value == 1).all()) for value in model.state_dict().values())
    load({name: value for name, value in whole.items() if name != "1.bias"})
    for tensors, said in (
        ({name: value for name, value in whole.items() if name != "0.bias"}, "lacks 1 of the tensors"),
        ({**whole, "0.bias": torch.ones(4)}, "0.bias has the shape (4,), and its configuration asks for (3,)"),
        ({**whole, "0.bias": torch.full((3,), float("nan"))}, "0.bias holds 3 numbers that are NaN or infinite"),
    ):
        with pytest.raises(CarvError, match=re.escape(said)):
            load(tensors)
    with pytest.raises(CarvError, match=r"lacks 1 of the tensors .* such as 1\.bias"):
        load({name: value for name, value in whole.items() if name != "1.bias"}, ("",))


def test_an_autoencoder_that_does_not_run_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from carv_3d.core.schedule import NoiseSchedule
    from carv_3d.teachers.compvis import CompVisTeacher

    model = compvis_models.LatentDiffusion()
    teacher = CompVisTeacher(model, NoiseSchedule.scaled_linear(), 16, "some model")
    assert (teacher.latent_channels, teacher.latent_size, teacher.image_size) == (4, 8, 16)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.decode(z, clamp=False), model.decode_first_stage(z) * 0.5 + 0.5)
    assert float(teacher.decode(10 * z).detach().max()) == 1
    mean, std = teacher.posterior(torch.rand(2, 3, 16, 16))
    assert mean.shape == std.shape == (2, 4, 8, 8)
    with pytest.raises(CarvError, match="some model encodes no text here"):
        teacher.text_embeddings(["a mug"])
    model.first_stage_model.quant_conv = nn.Conv2d(9, 8, 1)
    with pytest.raises(CarvError, match="the autoencoder of some model cannot be run on images of 16 pixels"):
        CompVisTeacher(model, NoiseSchedule.scaled_linear(), 16, "some model")


def test_samples_have_the_posteriors_mean_and_deviation() -> None:
    from carv_3d.core.schedule import NoiseSchedule
    from carv_3d.teachers.compvis import CompVisTeacher

    torch.manual_seed(0)
    teacher = CompVisTeacher(compvis_models.LatentDiffusion(), NoiseSchedule.scaled_linear(), 16)
    images = torch.rand(1, 3, 16, 16).expand(4000, -1, -1, -1)
    mean, std = (x[:1].detach() for x in teacher.posterior(images))
    z = teacher.encode(images, torch.Generator().manual_seed(1)).detach()
    assert float(((z.mean(0) - mean[0]) / (std[0] / 4000**0.5)).abs().max()) < 4.5
    torch.testing.assert_close(z.std(0), std[0], rtol=0.06, atol=0)
    assert torch.equal(teacher.encode(images[:1], sample=False), teacher.posterior(images[:1])[0])
