"""The XL teacher against diffusers' own pipeline, and what is said of its folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.availability import needed_files
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.families import STABLE_DIFFUSION_XL
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher
from carv_3d.teachers.xl_text import XLText, pack, unpack

PROMPTS = ["a red mug", "a cup"]


@pytest.fixture(scope="module")
def teacher(xl_folder: Path) -> Any:
    return StableDiffusionXLTeacher.load(str(xl_folder), device="cpu")


@pytest.fixture(scope="module")
def pipeline(xl_folder: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(str(xl_folder), add_watermarker=False)


def samples(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, 8, 8, generator=g), torch.randint(20, 980, (n,), generator=g)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def copy(xl_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(xl_folder, tmp_path / "copy"))


# --- against diffusers


def test_sizes_come_from_the_models_own_configs(teacher: Any) -> None:
    assert isinstance(teacher, Teacher)
    assert (teacher.latent_channels, teacher.latent_size, teacher.image_size) == (4, 8, 16)
    assert (teacher.text_width, teacher.pooled_width) == (40, 12)
    assert teacher.text_embeddings(PROMPTS).shape == (2, 21, 40)


def test_text_is_the_pipelines(teacher: Any, pipeline: Any) -> None:
    for prompt in PROMPTS:
        text, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        actual = unpack(teacher.text_embeddings([prompt]), 40, 12)
        torch.testing.assert_close(actual, (text, pooled))


def test_an_empty_prompt_is_the_pipelines_unconditional(teacher: Any, pipeline: Any, copy: Path) -> None:
    _, uncond, _, no_pooled = pipeline.encode_prompt("a cup", device="cpu", do_classifier_free_guidance=True)
    assert not uncond.any()
    assert not no_pooled.any()
    assert not teacher.text_embeddings([""]).any()
    # a model that was trained otherwise says so
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    _, text, _, pooled = pipeline.encode_prompt(
        "a cup", device="cpu", do_classifier_free_guidance=True, negative_prompt=""
    )
    embeddings = StableDiffusionXLTeacher.load(str(copy), device="cpu").text_embeddings(["", "a cup"])
    torch.testing.assert_close(unpack(embeddings[:1], 40, 12), (text, pooled))


def test_eps_hat_is_the_unet_with_pooled_text_and_the_models_own_size(teacher: Any, pipeline: Any) -> None:
    z, t = samples(2)
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    ids = pipeline._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, text_encoder_projection_dim=12)
    with torch.no_grad():
        actual = teacher.eps_hat(z, t, teacher.text_embeddings(PROMPTS))
        expected = pipeline.unet(
            z,
            t,
            encoder_hidden_states=text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.repeat(2, 1)},
        ).sample
        # both kinds of condition matter, so the comparison means something
        swapped = pack(text, pooled.flip(0))
        assert not torch.allclose(actual, teacher.eps_hat(z, t, swapped), atol=1e-4)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("text", "pooled"), [(5, 3), (3, 5), (4, 4)])
def test_packing_known_value(text: int, pooled: int) -> None:
    a, b = torch.rand(2, 3, text) + 1, torch.rand(2, pooled) + 1
    packed = pack(a, b)
    assert packed.shape == (2, 4, max(text, pooled))
    assert torch.equal(unpack(packed, text, pooled)[0], a)
    assert torch.equal(unpack(packed, text, pooled)[1], b)
    assert float(packed.sum()) == pytest.approx(float(a.sum() + b.sum()))


def test_v_prediction_becomes_eps(teacher: Any, copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    other = StableDiffusionXLTeacher.load(str(copy), device="cpu")
    z, t = samples(3)
    text = teacher.text_embeddings(["a cup"]).expand(3, -1, -1)
    with torch.no_grad():
        v = teacher.eps_hat(z, t, text)  # same weights, its output read as v
        abar = teacher.schedule.alpha(t).square().view(-1, 1, 1, 1)
        torch.testing.assert_close(other.eps_hat(z, t, text), abar.sqrt() * v + (1 - abar).sqrt() * z)


# --- in the guidance


def test_the_guidances_gradient_is_the_textbooks(teacher: Any) -> None:
    g = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 16, 16, 3, generator=g).requires_grad_()
    draws = Draws(torch.randint(20, 980, (2, 3), generator=g), torch.randn(2, 3, 4, 8, 8, generator=g))
    text, null = teacher.text_embeddings(PROMPTS), teacher.text_embeddings([""])
    options = GuidanceOptions(guidance_scale=5.0, num_draws=3, max_batch=2, vae_sample="mode")
    out = SDSGuidance(teacher, options)(rgb, text, null, step=0, draws=draws)
    gradient = torch.autograd.grad(out.loss_sds, rgb)[0]
    total = torch.zeros_like(rgb)
    for r in range(2):
        for k in range(3):
            z = teacher.encode(rgb.permute(0, 3, 1, 2)[r : r + 1], sample=False)
            t, eps = draws.t[r, k : k + 1], draws.eps[r, k : k + 1]
            abar = teacher.schedule.alpha(t).square()
            with torch.no_grad():
                z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
                e, e0 = teacher.eps_hat(z_t, t, text[r : r + 1]), teacher.eps_hat(z_t, t, null)
                f = (1 - abar) * (e0 + 5.0 * (e - e0) - eps)
            total += torch.autograd.grad(z, rgb, f)[0] / 6
    assert total.abs().max() > 1e-3
    torch.testing.assert_close(gradient, total, rtol=1e-3, atol=1e-5)


# --- the VAE


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({}, torch.float32), ({"force_upcast": True}, torch.float32), ({"force_upcast": False}, torch.float16)],
)
def test_the_vae_stays_in_float32_unless_its_config_allows_half(config: dict[str, bool], dtype: torch.dtype) -> None:
    assert StableDiffusionXLTeacher._choose_vae_dtype(config, torch.float16) == dtype


def test_images_pass_a_float32_vae_next_to_a_half_unet(teacher: Any) -> None:
    import copy as copier

    mixed = StableDiffusionXLTeacher(copier.deepcopy(teacher.unet).half(), teacher.vae, None, teacher.schedule)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (mixed.dtype, mixed.vae_dtype) == (torch.float16, torch.float32)
    assert torch.equal(mixed.encode(x, sample=False), teacher.encode(x, sample=False))


# --- what is refused


def test_an_sd_folder_names_the_guidance_to_use(sd_folder: Path) -> None:
    with pytest.raises(CarvError, match=r"holds Stable Diffusion 1.x or 2.x.*: use .*carv-stable-diffusion-guidance"):
        StableDiffusionXLTeacher.load(str(sd_folder), device="cpu")


def test_an_xl_folder_names_the_guidance_to_use(xl_folder: Path) -> None:
    with pytest.raises(CarvError, match=r"holds Stable Diffusion XL.*: use .*carv-stable-diffusion-xl-guidance"):
        StableDiffusionTeacher.load(str(xl_folder), device="cpu")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: edit(f / "model_index.json", text_encoder=[None, None], tokenizer=[None, None]),
            "refiner of Stable Diffusion XL",
        ),
        (lambda f: edit(f / "model_index.json", tokenizer_2=[None, None]), "it lists no tokenizer_2"),
        (lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(), "text_encoder_2/model.safetensors"),
        (lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="dog"), "'dog'"),
        (lambda f: edit(f / "unet" / "config.json", addition_embed_type=None), "addition_embed_type = None"),
        (lambda f: edit(f / "unet" / "config.json", in_channels=9), "takes 9 channels"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(copy: Path, damage: Any, said: str) -> None:
    damage(copy)
    with pytest.raises(CarvError) as caught:
        StableDiffusionXLTeacher.load(str(copy), device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_models_text_is_refused(teacher: Any, sd_teacher: Any) -> None:
    z, t = samples(1)
    with pytest.raises(CarvError, match=r"are 16 wide and .* needs 40.*carv-stable-diffusion-xl-prompt-processor"):
        teacher.eps_hat(z, t, sd_teacher.text_embeddings(["a cup"]))
    with pytest.raises(CarvError, match=r"are 40 wide and .* needs 16"):
        sd_teacher.eps_hat(z, t, teacher.text_embeddings(["a cup"]))


def test_without_text_encoders_embeddings_are_asked_for(xl_folder: Path) -> None:
    bare = StableDiffusionXLTeacher.load(str(xl_folder), device="cpu", with_text=False)
    with pytest.raises(CarvError, match="without its text encoders"):
        bare.text_embeddings(["a cup"])


# --- the text alone, and what is downloaded


def test_the_text_alone_is_the_teachers(xl_folder: Path, teacher: Any) -> None:
    assert torch.equal(XLText.load(str(xl_folder))(["a cup", ""]), teacher.text_embeddings(["a cup", ""]))


def test_both_text_encoders_are_downloaded() -> None:
    listing = [
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_2/model.onnx",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ]
    dropped = {listing[1], listing[4], listing[5], listing[8]}
    assert set(needed_files(listing, STABLE_DIFFUSION_XL)) == set(listing) - dropped
