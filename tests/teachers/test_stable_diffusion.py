"""The teacher against the parts it is made of."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.loading import dtype_argument, load_vae_without_attention
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def samples(teacher: Any, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = teacher.latent_size
    z = torch.randn(n, teacher.latent_channels, size, size, generator=g)
    t = torch.randint(20, 980, (n,), generator=g)
    cond = torch.randn(n, teacher.context_length, 16, generator=g)
    uncond = torch.randn(n, teacher.context_length, 16, generator=g)
    return z, t, cond, uncond


# --- sizes, freezing, encoding


def test_sizes_come_from_the_models_own_configs(sd_teacher: Any) -> None:
    assert isinstance(sd_teacher, Teacher)
    assert (sd_teacher.latent_channels, sd_teacher.latent_size, sd_teacher.image_size) == (4, 8, 16)
    assert sd_teacher.text_embeddings(["a mug"]).shape == (1, 20, 16)
    assert sd_teacher.schedule.num_train_timesteps == 1000


def test_frozen_and_in_eval_mode(sd_teacher: Any) -> None:
    for part in (sd_teacher.unet, sd_teacher.vae, sd_teacher.text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    assert not isinstance(sd_teacher, torch.nn.Module)


def test_encode_is_the_scaled_posterior_and_its_gradient_is_right(sd_teacher: Any) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    z = sd_teacher.encode(x, sample=False)
    posterior = sd_teacher.vae.encode(2 * x - 1).latent_dist
    torch.testing.assert_close(z, posterior.mean * 0.5)  # scaling_factor of the fixture
    # a sample is mean + std * noise, with the noise of the given generator
    sampled = sd_teacher.encode(x, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sampled, (posterior.mean + posterior.std * noise) * 0.5)
    # directional derivative against a central difference
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    cotangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    (grad,) = torch.autograd.grad((z * cotangent).sum(), x)
    h = 1e-3
    with torch.no_grad():
        both = [(sd_teacher.encode(x + s * h * direction, sample=False) * cotangent).sum() for s in (1, -1)]
    slope = (both[0] - both[1]) / (2 * h)
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=2e-2, atol=1e-2)


def test_decode_undoes_the_scaling_and_clamps(sd_teacher: Any) -> None:
    z = 3 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    raw = sd_teacher.vae.decode(z / 0.5).sample * 0.5 + 0.5
    torch.testing.assert_close(sd_teacher.decode(z), raw.clamp(0, 1))
    torch.testing.assert_close(sd_teacher.decode(z, clamp=False), raw)


def test_encode_names_a_size_that_does_not_fit(sd_teacher: Any) -> None:
    with pytest.raises(CarvError, match=r"multiples of 2.*\(1, 3, 15, 16\)"):
        sd_teacher.encode(torch.rand(1, 3, 15, 16))


# --- text


def test_each_prompt_is_encoded_once(sd_folder: Path) -> None:
    teacher = StableDiffusionTeacher.load(str(sd_folder), device="cpu")
    batches: list[int] = []
    teacher.text_encoder.register_forward_hook(lambda m, i, o: batches.append(o[0].shape[0]))
    first = teacher.text_embeddings(["a mug", "", "a mug"])
    again = teacher.text_embeddings(["", "a cup"])
    assert batches == [2, 1]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    assert not torch.equal(again[0], again[1])
    assert not first.requires_grad


def test_no_prompts_are_one_sentence(sd_teacher: Any) -> None:
    with pytest.raises(CarvError, match="prompts is empty; give one at least"):
        sd_teacher.text_embeddings([])


def test_a_long_prompt_is_cut_and_said(sd_teacher: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sd_teacher.text_embeddings(["x" * 40])
        assert "cut off: 42 tokens of 20" in caplog.text
        caplog.clear()
        sd_teacher.text_embeddings(["x" * 18])  # with begin and end just as many as are read
        assert not caplog.records


def test_padding_is_masked_where_the_text_encoder_asks_for_it(sd_folder: Path) -> None:
    teacher = StableDiffusionTeacher.load(str(sd_folder), device="cpu")
    masks: list[Any] = []
    teacher.text_encoder.register_forward_pre_hook(
        lambda module, given, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    teacher.text_embeddings(["xx"])
    teacher.text_encoder.config.use_attention_mask = True
    teacher.text_embeddings(["xxx"])
    assert masks[0] is None
    assert masks[1].sum() == 5  # begin, three letters, end


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_either_transformers_load_alike(
    sd_folder: Path, sd_teacher: Any, tmp_path: Path, prefix: str
) -> None:
    # transformers 5 saves CLIP without the prefix that transformers 4 looks for
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(sd_folder, folder)
    file = folder / "text_encoder" / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(str(file)).items()}
    save_file({prefix + key: value for key, value in bare.items()}, str(file), metadata={"format": "pt"})
    other = StableDiffusionTeacher.load(str(folder), device="cpu")
    assert torch.equal(other.text_embeddings(["a mug"]), sd_teacher.text_embeddings(["a mug"]))


# --- noise predictions


def test_v_prediction_becomes_eps(sd_teacher: Any, v_prediction_folder: Path) -> None:
    teacher = StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu")
    z, t, cond, _ = samples(teacher, 3)
    with torch.no_grad():
        v = sd_teacher.eps_hat(z, t, cond)  # same weights, its output read as v
        abar = teacher.schedule.alpha(t).square().view(-1, 1, 1, 1)
        torch.testing.assert_close(teacher.eps_hat(z, t, cond), abar.sqrt() * v + (1 - abar).sqrt() * z)


def test_a_model_that_predicts_the_true_v_gives_the_true_eps(v_prediction_folder: Path) -> None:
    # known value: v = alpha eps - sigma z  =>  the conversion returns eps
    teacher = StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu")
    z, t, cond, _ = samples(teacher, 2)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (teacher.schedule.alpha, teacher.schedule.sigma))
    teacher.unet.forward = lambda *args, **kwargs: (alpha * eps - sigma * z,)
    torch.testing.assert_close(teacher.eps_hat(teacher.schedule.add_noise(z, eps, t), t, cond), eps)


# --- precision and versions


def test_half_precision_on_the_cpu_is_float32_with_a_note(sd_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        teacher = StableDiffusionTeacher.load(str(sd_folder), device="cpu", half_precision=True)
    assert teacher.dtype == torch.float32
    assert "half precision is for CUDA" in caplog.text


def test_autocast_of_the_host_does_not_reach_the_teacher(sd_teacher: Any) -> None:
    z, t, cond, _ = samples(sd_teacher, 1)
    with torch.no_grad():
        plain = sd_teacher.eps_hat(z, t, cond)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(sd_teacher.eps_hat(z, t, cond), plain)


@pytest.mark.parametrize(
    ("library", "version", "argument"),
    [
        ("diffusers", "0.19.3", "torch_dtype"),
        ("diffusers", "0.42.1", "dtype"),
        ("transformers", "4.28.1", "torch_dtype"),
        ("transformers", "5.0.0", "dtype"),
    ],
)
def test_the_name_of_dtype_by_version(library: str, version: str, argument: str) -> None:
    assert dtype_argument(library, version) == argument


def test_the_built_in_autoencoder_is_the_same_where_diffusers_has_no_option_for_it() -> None:
    teacher = StableDiffusionTeacher.load("carv-tiny", device="cpu", with_text=False)
    folder = resolve_model("carv-tiny")
    older = load_vae_without_attention(folder / "vae", torch.float32)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = older.encode(x).latent_dist.mean
        torch.testing.assert_close(z, teacher.vae.encode(x).latent_dist.mean)
        torch.testing.assert_close(older.decode(z).sample, teacher.vae.decode(z).sample)


@pytest.mark.parametrize("own", [{"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"sigma_data": 0.5}])
def test_a_model_of_flow_matching_or_edm_is_refused(sd_folder: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "model"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    with pytest.raises(CarvError, match=r"it must be flow_prediction|flow matching or EDM"):
        StableDiffusionTeacher.load(str(folder), device="cpu", with_text=False)


def test_latents_are_shifted_before_they_are_scaled(sd_teacher: Any) -> None:
    vae = copy.deepcopy(sd_teacher.vae)
    vae.register_to_config(shift_factor=0.3)
    shifted = StableDiffusionTeacher(sd_teacher.unet, vae, None, None, sd_teacher.schedule)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    posterior = vae.encode(2 * x - 1).latent_dist
    z = shifted.encode(x, sample=False)
    torch.testing.assert_close(z, (posterior.mean - 0.3) * 0.5)
    mean, std = shifted.posterior(x)
    torch.testing.assert_close(mean, z)
    torch.testing.assert_close(std, posterior.std * 0.5)
    torch.testing.assert_close(shifted.decode(z, clamp=False), vae.decode(posterior.mean).sample * 0.5 + 0.5)
