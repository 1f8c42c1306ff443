"""The extension's variational score distillation in a host double: whose options and parameters are whose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
import torch
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

B = 2
BATCH = {
    "elevation": torch.tensor([15.0, 20.0]), "azimuth": torch.tensor([0.0, 90.0]),
    "camera_distances": torch.tensor([1.5, 2.0]), "rays_o": None, "height": 64,
    "c2w": torch.randn(B, 4, 4, generator=torch.Generator().manual_seed(1)),
    "mvp_mtx": torch.randn(B, 4, 4, generator=torch.Generator().manual_seed(2)),
}  # fmt: skip


@pytest.fixture
def make(host: Any, sd_folder: Path, v_prediction_folder: Path) -> Any:
    def build(**cfg: Any) -> Any:
        torch.manual_seed(0)
        names = {
            "pretrained_model_name_or_path": str(sd_folder),
            "pretrained_model_name_or_path_lora": str(v_prediction_folder),
        }
        return host.modules["carv-vsd-guidance"]({**names, "seed": 0, "vae_sample": False, **cfg})

    return build


@pytest.fixture
def utils(sd_teacher: Any) -> Any:
    text, uncond = sd_teacher.text_embeddings(["a mug", "a cup"]), sd_teacher.text_embeddings(["", "bad"])
    return double.PromptUtils(text, uncond, from_all_sides=sd_teacher.text_embeddings(["all", "round"]))


def test_every_option_beside_the_stock_ones_is_in_the_readme(host: Any) -> None:
    readme = (double.EXTENSION / "README.md").read_text()
    config = vars(host.modules["carv-vsd-guidance"].Config())
    shared = vars(host.modules["carv-stable-diffusion-guidance"].Config())
    stock = recorded.facts()["stable-diffusion-vsd-guidance"]
    own = {name: value for name, value in config.items() if name not in stock and name not in shared}
    assert own == {"lora_max_batch": 4, "lora_rank": 4}
    for name, value in own.items():
        assert f"- `{name}` ({value})" in readme
    differ = {name for name in shared if name in config and config[name] != shared[name]}
    assert differ == {"pretrained_model_name_or_path", "guidance_scale", "cfg_convention", "objective"}


def test_the_host_sees_the_lora_and_nothing_else(make: Any) -> None:
    guidance = make()
    assert {name.split(".")[0] for name, _ in guidance.named_parameters()} == {"lora"}
    assert all(key.startswith("lora.") for key in guidance.state_dict())
    assert {id(p) for p in guidance.parameters()} == {id(p) for p in guidance._carv.lora_score.parameters()}
    guidance.train()  # as Lightning does to whatever is registered
    assert not guidance._carv.sds.teacher.unet.training
    assert not guidance._carv.lora_score.denoiser.unet.training


@pytest.mark.parametrize(("kind", "matrix"), [("extrinsics", "c2w"), ("mvp", "mvp_mtx")])
def test_one_uniform_draw_is_the_stock_gradient(
    make: Any, sd_teacher: Any, rgb: Tensor, utils: Any, kind: str, matrix: str
) -> None:
    cfg = {"num_draws": 1, "proposal": "uniform", "camera_condition_type": kind}
    guidance, again = make(**cfg), make(**cfg)._carv  # seeded, so a second one draws the same
    out = guidance(rgb, utils, **BATCH)
    draws = again.sds.estimator.draw(torch.zeros(B, 4, 8, 8), again.sds.generator)
    z = sd_teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
    t, eps = draws.t[:, 0], draws.eps[:, 0]
    abar = sd_teacher.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
        e, e0 = sd_teacher.eps_hat(z_t, t, utils.text), sd_teacher.eps_hat(z_t, t, utils.uncond)
        own = guidance._carv.lora_score.eps_hat(z_t, t, utils.from_all_sides, BATCH[matrix].flatten(1))
        f = (1 - abar) * (e0 + 7.5 * (e - e0) - own)
    expected = torch.autograd.grad(z, rgb, f / B)[0]
    assert expected.abs().max() > 1e-3
    found = torch.autograd.grad(out["loss_vsd"], rgb)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_all_that_is_logged_is_a_scalar(make: Any, rgb: Tensor, utils: Any) -> None:
    out = make(use_img_loss=True, lora_n_timestamp_samples=2)(rgb, utils, **BATCH)
    for name, value in out.items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name
    assert {name for name in out if name.startswith("loss_")} == {"loss_vsd", "loss_lora", "loss_vsd_img"}
    assert (out["K"], out["K_lora"], out["renders"]) == (4.0, 2.0, float(B))
    assert out["nfe"] == 3 * 4 * B + 2 * B
    assert "seconds_train_lora" in out


def test_a_training_step_of_the_host_moves_the_lora(make: Any, rgb: Tensor, utils: Any) -> None:
    guidance = make()
    optimizer = torch.optim.AdamW(guidance.parameters(), lr=1e-3)
    out = guidance(rgb, utils, **BATCH)
    (out["loss_vsd"] + out["loss_lora"]).backward()
    optimizer.step()
    assert not guidance.lora.untouched
    assert bool(rgb.grad.any())


def test_a_lora_that_no_optimizer_has_is_named(make: Any, rgb: Tensor, utils: Any) -> None:
    guidance = make(num_draws=1)
    for _ in range(20):
        guidance(rgb, utils, **BATCH)
    with pytest.raises(CarvError, match=re.escape("optimizer.params.guidance.lr")):
        guidance(rgb, utils, **BATCH)


def test_state_survives_the_hosts_checkpoint(host: Any, make: Any, rgb: Tensor, utils: Any) -> None:
    system_class = type("system:carv-checkpoint", (host.modules["carv-checkpoint"], double.System), {})
    first, second = system_class(), system_class()
    first.guidance, second.guidance = make(proposal="adaptive"), make(proposal="adaptive", seed=9)
    optimizer = torch.optim.Adam(first.guidance.parameters(), lr=1e-2)
    for _ in range(3):
        first.guidance(rgb, utils, **BATCH)["loss_lora"].backward()
        optimizer.step()
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.guidance.load_state_dict(first.guidance.state_dict())  # the host's own, strict
    second.on_load_checkpoint(checkpoint)
    second.on_fit_start()
    a, b = (s.guidance(rgb, utils, **BATCH) for s in (first, second))
    for name in ("loss_vsd", "loss_lora"):
        assert torch.equal(a[name], b[name])


def test_one_model_for_both_is_loaded_once(make: Any, sd_folder: Path, rgb: Tensor, utils: Any) -> None:
    guidance = make(pretrained_model_name_or_path_lora=str(sd_folder))
    assert guidance._carv.lora_score.denoiser.unet is guidance._carv.sds.teacher.unet
    assert bool(torch.isfinite(guidance(rgb, utils, **BATCH)["loss_lora"]))


def test_samples_are_images_of_either_side(make: Any, utils: Any) -> None:
    guidance = make()
    teacher_side, lora_side = guidance.sample(utils, **BATCH), guidance.sample_lora(utils, **BATCH)
    assert teacher_side.shape == lora_side.shape == (B, 16, 16, 3)
    assert not torch.equal(teacher_side, lora_side)
    assert torch.equal(teacher_side, guidance.sample(utils, **BATCH, seed=0))
    assert not torch.equal(teacher_side, guidance.sample(utils, **BATCH, seed=1))


def test_the_lora_models_unet_alone_is_loaded(make: Any, v_prediction_folder: Path) -> None:
    denoiser = make()._carv.lora_score.denoiser
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
def test_what_cannot_be_meant_is_one_sentence(
    make: Any, cfg: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_an_xl_model_is_named_as_such(make: Any, xl_folder: Path) -> None:
    with pytest.raises(CarvError, match="holds Stable Diffusion XL"):
        make(pretrained_model_name_or_path_lora=str(xl_folder))
