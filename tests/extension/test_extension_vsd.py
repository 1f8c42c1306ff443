"""The extension's variational score distillation in a host double: whose options and parameters are whose."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.guidance import cfg
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

B = 2


def test_every_option_of_its_own_is_documented(host: Any) -> None:
    page = (double.EXTENSION.parents[1] / "docs" / "THREESTUDIO.md").read_text()
    config = vars(host.modules["carv-vsd-guidance"].Config())
    shared = vars(host.modules["carv-stable-diffusion-guidance"].Config())
    stock = recorded.facts()["stable-diffusion-vsd-guidance"]
    own = {name: value for name, value in config.items() if name not in stock and name not in shared}
    assert own == {"lora_max_batch": 4, "lora_rank": 4}
    for name, value in own.items():
        assert f"- `{name}` ({value})" in page
    differ = {name for name in shared if name in config and config[name] != shared[name]}
    assert differ == {"pretrained_model_name_or_path", "guidance_scale", "cfg_convention", "objective"}


def test_the_host_sees_the_lora_and_nothing_else(make_vsd: Callable[..., Any]) -> None:
    guidance = make_vsd()
    assert {name.split(".")[0] for name, _ in guidance.named_parameters()} == {"lora"}
    assert all(key.startswith("lora.") for key in guidance.state_dict())
    assert {id(p) for p in guidance.parameters()} == {id(p) for p in guidance._carv.lora_score.parameters()}
    guidance.train()  # as Lightning does to whatever is registered
    assert not guidance._carv.sds.teacher.unet.training
    assert not guidance._carv.lora_score.denoiser.unet.training


def test_all_that_is_logged_is_a_scalar(make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    out = make_vsd(use_img_loss=True, lora_n_timestamp_samples=2)(rgb, utils, **double.VIEWS)
    for name, value in out.items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name
    assert {name for name in out if name.startswith("loss_")} == {"loss_vsd", "loss_lora", "loss_vsd_img"}
    assert (out["K"], out["K_lora"], out["renders"]) == (4.0, 2.0, float(B))
    assert out["nfe"] == 3 * 4 * B + 2 * B
    assert "seconds_train_lora" in out


def test_a_training_step_of_the_host_moves_the_lora(make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make_vsd()
    optimizer = torch.optim.AdamW(guidance.parameters(), lr=1e-3)
    out = guidance(rgb, utils, **double.VIEWS)
    (out["loss_vsd"] + out["loss_lora"]).backward()
    optimizer.step()
    assert not guidance.lora.untouched
    assert bool(rgb.grad.any())


def test_a_lora_that_no_optimizer_has_is_named(make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make_vsd(num_draws=1)
    guidance._untrained_steps = 19
    guidance(rgb, utils, **double.VIEWS)  # the 20th, whose optimizer step is still to come
    with pytest.raises(CarvError, match=re.escape("optimizer.params.guidance.lr")):
        guidance(rgb, utils, **double.VIEWS)
    with torch.no_grad():
        next(iter(guidance.lora.layers.values())).up.weight.fill_(0.1)
    guidance._untrained_steps = 20
    guidance(rgb, utils, **double.VIEWS)


def test_state_survives_the_hosts_checkpoint(host: Any, make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    system_class = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    first, second = system_class(), system_class()
    first.guidance, second.guidance = make_vsd(proposal="adaptive"), make_vsd(proposal="adaptive", seed=9)
    optimizer = torch.optim.Adam(first.guidance.parameters(), lr=1e-2)
    for _ in range(3):
        first.guidance(rgb, utils, **double.VIEWS)["loss_lora"].backward()
        optimizer.step()
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.guidance.load_state_dict(first.guidance.state_dict())  # the host's own, strict
    second.on_load_checkpoint(checkpoint)
    second.on_fit_start()
    a, b = (s.guidance(rgb, utils, **double.VIEWS) for s in (first, second))
    for name in ("loss_vsd", "loss_lora"):
        assert torch.equal(a[name], b[name])


def test_one_model_for_both_is_loaded_once(
    make_vsd: Callable[..., Any], sd_folder: Path, rgb: Tensor, utils: Any
) -> None:
    guidance = make_vsd(pretrained_model_name_or_path_lora=str(sd_folder))
    assert guidance._carv.lora_score.denoiser.unet is guidance._carv.sds.teacher.unet
    assert bool(torch.isfinite(guidance(rgb, utils, **double.VIEWS)["loss_lora"]))


def test_perp_negs_negatives_are_passed_on(
    make_vsd: Callable[..., Any], rgb: Tensor, perp_neg: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = make_vsd(num_draws=1, proposal="uniform")
    given: dict[str, Any] = {}

    def record(eps_hat: Any, z: Tensor, t: Tensor, cond: Any, *more: Any) -> Any:
        given.update(cond._asdict())
        return cfg.predict(eps_hat, z, t, cond, *more)

    monkeypatch.setattr("carv_3d.guidance.sds.predict", record)
    out = guidance(rgb, perp_neg, **double.VIEWS)
    for name, value in (("text", perp_neg.text), ("uncond", perp_neg.uncond), ("perp_neg", perp_neg.negatives),
                        ("perp_neg_weights", perp_neg.weights), ("trained_text", perp_neg.from_all_sides)):  # fmt: skip
        assert torch.equal(given[name], value), name
    assert out["guidance_scale"] == 7.5


def test_latents_are_taken_as_they_are(make_vsd: Callable[..., Any], utils: Any) -> None:
    z = torch.randn(B, 8, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = make_vsd(num_draws=1)(z, utils, **double.VIEWS, rgb_as_latents=True)
    assert torch.autograd.grad(out["loss_vsd"], z)[0].abs().max() > 1e-3
    assert "seconds_encode" not in out


def test_schedules_follow_the_hosts_steps_and_epochs(make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make_vsd(num_draws=1, guidance_scale=[0, 9.0, 5.0, 2.0], guidance_scale_lora=[0, 1.0, 3.0, 100],
                        max_step_percent=[0, 0.98, 0.5, 100])  # fmt: skip
    guidance.update_step(1, 50)
    out = guidance(rgb, utils, **double.VIEWS)
    assert (out["guidance_scale"], out["guidance_scale_lora"], out["max_step"]) == (7.0, 2.0, 740.0)


def test_samples_are_of_either_side_at_this_step(
    make_vsd: Callable[..., Any], sd_teacher: Any, utils: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance = make_vsd(guidance_scale=[0, 9.0, 5.0, 2.0], guidance_scale_lora=[0, 1.0, 3.0, 100])
    parameters = guidance.lora.parameters()
    with torch.no_grad():
        [p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i))) for i, p in enumerate(parameters)]
    guidance.update_step(1, 50)
    asked: list[Any] = []
    monkeypatch.setattr(
        sys.modules["threestudio-carv.vsd"], "sample_images", lambda *a, **more: asked.append((a, more))
    )
    guidance.sample(utils, **double.VIEWS, seed=3)
    guidance.sample_lora(utils, **double.VIEWS, seed=4)
    sample, lora = asked
    assert [(args[0], args[2], more) for args, more in asked] == [
        (guidance._carv.sds.teacher, B, {"seed": 3}), (guidance._carv.sds.teacher, B, {"seed": 4})
    ]  # fmt: skip
    z, t = torch.randn(B, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([700, 100])
    carv = guidance._carv
    with torch.no_grad():
        e, e0 = (sd_teacher.eps_hat(z, t, text) for text in (utils.text, utils.uncond))
        torch.testing.assert_close(sample[0][1](z, t), e0 + 7.0 * (e - e0), rtol=1e-3, atol=1e-4)
        camera = double.VIEWS["c2w"].flatten(1)
        without, with_camera = (
            carv.lora_score.eps_hat(z, t, utils.from_all_sides, c) for c in (torch.zeros_like(camera), camera)
        )
        torch.testing.assert_close(lora[0][1](z, t), without + 2.0 * (with_camera - without), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(without, with_camera)


def test_samples_are_images_and_not_counted(make_vsd: Callable[..., Any], rgb: Tensor, utils: Any) -> None:
    guidance = make_vsd(num_draws=1)
    before = guidance(rgb, utils, **double.VIEWS)["nfe"]
    assert guidance.sample(utils, **double.VIEWS).shape == (B, 16, 16, 3)
    assert guidance(rgb, utils, **double.VIEWS)["nfe"] == 2 * before


def test_the_lora_models_unet_alone_is_loaded(make_vsd: Callable[..., Any], v_prediction_folder: Path) -> None:
    denoiser = make_vsd()._carv.lora_score.denoiser
    whole = StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu")
    assert not hasattr(denoiser, "vae")
    assert denoiser.prediction_type == "v_prediction"
    g = torch.Generator().manual_seed(0)
    z, t, text = torch.randn(1, 4, 8, 8, generator=g), torch.tensor([400]), torch.randn(1, 20, 16, generator=g)
    with torch.no_grad():
        assert torch.equal(denoiser.eps_hat(z, t, text), whole.eps_hat(z, t, text))


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"lora_n_timestamp_samples": 0}, "lora_n_timestamp_samples"),
        ({"camera_condition_type": "rays"}, "camera_condition_type"),
        ({"num_drawz": 4}, "num_draws"),
        ({"pretrained_model_name_or_path_lora": "no/such-model-here"}, "no/such-model-here"),
    ],
)
@pytest.mark.usefixtures("_offline")
def test_what_cannot_be_meant_is_one_sentence(make_vsd: Callable[..., Any], cfg: dict[str, Any], said: str) -> None:
    with pytest.raises(CarvError, match=re.escape(said)):
        make_vsd(**cfg)


def test_two_models_that_do_not_fit_are_named(make_vsd: Callable[..., Any], build_folder: Any, tmp_path: Path) -> None:
    other = build_folder(tmp_path / "model", width=24)
    with pytest.raises(CarvError, match="do not fit: they take text 16 wide and text 24 wide"):
        make_vsd(pretrained_model_name_or_path_lora=str(other))


def test_an_xl_model_is_named_as_such(make_vsd: Callable[..., Any], xl_folder: Path) -> None:
    with pytest.raises(CarvError, match="holds Stable Diffusion XL"):
        make_vsd(pretrained_model_name_or_path_lora=str(xl_folder))
