"""Every family of `small_families` against its diffusers pipeline's own first step, and in the guidance."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_matrix import families
from small_families import BUILDERS, build_family

from carv_3d.core.estimator import Draws
from carv_3d.distill.command import _check_model
from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.families import STABLE_DIFFUSION
from carv_3d.teachers.load import find_model, load_teacher
from carv_3d.teachers.xl_text import unpack

PROMPTS = ["a red mug", "a cup"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build_family(name, tmp_path_factory.mktemp("family") / "model") for name in BUILDERS}


@pytest.fixture(scope="module")
def teachers(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load_teacher(str(folder), device="cpu") for name, folder in folders.items()}


class _FirstStep(Exception):
    pass


def first_step(pipeline: Any, size: int, **call: Any) -> tuple[torch.Tensor, float, torch.Tensor, dict[str, Any]]:
    """The prediction after guidance, timestep and z_t of a pipeline's first step, and what its network was given."""
    seen: list[Any] = []
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    given: dict[str, Any] = {}
    network.register_forward_pre_hook(lambda _, args, kwargs: given.update(kwargs), with_kwargs=True)

    def step(prediction: torch.Tensor, t: Any, z: torch.Tensor, **_: Any) -> None:
        seen.extend((prediction, float(t), z))
        raise _FirstStep

    pipeline.scheduler.step = step
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(_FirstStep):
        pipeline(num_inference_steps=4, height=size, width=size, generator=torch.Generator().manual_seed(0), **call)
    return seen[0], seen[1], seen[2], given


def load_pipeline(folder: Path, **parts: Any) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(str(folder), **parts)


@pytest.fixture(scope="module")
def first_steps(folders: dict[str, Path], teachers: dict[str, Any]) -> Callable[[str], Any]:
    """`first_step` of each family's pipeline for "A red Mug", at a guidance of 4, made once."""

    @functools.cache
    def of(name: str) -> Any:
        pipeline = load_pipeline(folders[name])
        captions = name.startswith(("PixArt", "SANA", "Deep"))
        more: dict[str, Any] = {"clean_caption": False} if captions else {}
        if captions and "Deep" not in name:
            more["use_resolution_binning"] = False
        size = teachers[name].image_size
        prediction, time, z, given = first_step(pipeline, size, prompt="A red Mug", guidance_scale=4.0, **more)
        if name == "FLUX.1":
            prediction, z = (pipeline._unpack_latents(x, 16, 16, 2) for x in (prediction, z))
        return prediction, time, z, given

    return of


@pytest.mark.parametrize("name", families("prompt embeddings"))
def test_the_text_is_the_pipelines(name: str, teachers: dict[str, Any], first_steps: Callable[[str], Any]) -> None:
    """All that the network is given of the prompt and of the empty one; FLUX.1 has no use for the second."""
    teacher, given = teachers[name], first_steps(name)[3]
    texts = teacher.text_embeddings(["A red Mug"] if name == "FLUX.1" else ["", "A red Mug"])
    conditions = teacher.conditions(texts)
    pairs = [(key, value, given[key]) for key, value in conditions.items() if isinstance(value, torch.Tensor)]
    for key, values in conditions.items():
        if isinstance(values, dict):
            pairs += [(name, value, given[key][name]) for name, value in values.items() if value is not None]
    keys = [key for key, _, _ in pairs]
    assert "encoder_hidden_states" in keys
    for key, actual, expected in pairs:
        if key in ("timestep", "guidance"):
            continue
        torch.testing.assert_close(
            actual, expected.to(actual.dtype), rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
    text = conditions["encoder_hidden_states"]
    assert len(text) == 1 or (text[0] - text[1]).abs().max() > 1e-3


def test_a_prompt_is_cut_where_the_encoder_ends(folders: dict[str, Path], teachers: dict[str, Any]) -> None:
    """A tokenizer may allow more than CLIP has positions for, and without a limit of its own it says 1e30."""
    other = load_teacher(str(folders["FLUX.1"]), device="cpu")
    other.tokenizers["tokenizer"].model_max_length = 10**30
    expected = teachers["FLUX.1"].text_embeddings(["a mug"])
    assert torch.equal(other.text_embeddings(["a mug"]), expected)


@pytest.mark.parametrize("name", families("prediction"))
def test_the_first_step_is_the_pipelines(
    name: str, teachers: dict[str, Any], first_steps: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teachers[name]
    assert isinstance(teacher, Teacher)
    assert teacher.shortened("a mug", [", left view"]) == "a mug"
    expected, time, z, _ = first_steps(name)
    if name == "FLUX.1":
        monkeypatch.setattr(teacher, "distilled_guidance", 4.0)
    times = teacher.schedule.times
    t = torch.tensor([int(time) if times is None else int((times - time).abs().argmin())])
    if times is not None:  # a solver for diffusion rounds it
        assert abs(float(times[t]) - time) < 0.5
        monkeypatch.setattr(teacher.schedule, "times", torch.full_like(times, time))
    with torch.no_grad():
        text, uncond = teacher.text_embeddings(["A red Mug", ""]).split(1)
        actual, other = teacher.predict(z, t, text), teacher.predict(z, t, uncond)
    # the text matters, so the comparison means something
    assert (actual - other).abs().max() > 1e-2
    if name != "FLUX.1":
        actual = other + 4.0 * (actual - other)
    if name == "DeepFloyd IF":
        expected = expected[:, :3]  # without the learned variance
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def sds_by_hand(teacher: Any, rgb: torch.Tensor, text: Any, null: Any, draws: Draws, s: float) -> torch.Tensor:
    """The mean over renders and draws of w(t) (eps_hat - eps), through the encoder."""
    total, (R, K) = torch.zeros_like(rgb), draws.t.shape
    for r in range(R):
        for k in range(K):
            z = teacher.encode(rgb.permute(0, 3, 1, 2)[r : r + 1], sample=False)
            t, eps = draws.t[r, k : k + 1], draws.eps[r, k : k + 1]
            alpha, sigma = teacher.schedule.alpha(t), teacher.schedule.sigma(t)
            with torch.no_grad():
                z_t = alpha * z + sigma * eps
                e = []
                for y in (text[r : r + 1], null):
                    out = teacher.predict(z_t, t, y)
                    if teacher.schedule.family == "flow":  # out = eps - z, and z_t = alpha z + sigma eps
                        out = z_t + alpha * out
                    elif teacher.schedule.family == "edm":  # z_hat = z_t / 4 + sigma out / 2, over sigma^2 + 1/4
                        z_hat = 0.25 * z_t / (sigma**2 + 0.25) + 0.5 * sigma * out / (sigma**2 + 0.25).sqrt()
                        out = (z_t - z_hat) / sigma
                    e.append(out)
                w = sigma**2 / (alpha**2 + sigma**2)
                f = w * (e[1] + s * (e[0] - e[1]) - eps)
            total += torch.autograd.grad(z, rgb, f)[0] / (R * K)
    return total


@pytest.mark.parametrize("name", families("SDS gradient"))
def test_the_gradient_of_score_distillation_is_that_by_hand(name: str, teachers: dict[str, Any]) -> None:
    teacher = teachers[name]
    g = torch.Generator().manual_seed(0)
    R, K = (1, 1) if name == "PixArt-alpha" else (2, 2)  # whose small model has large images
    rgb = torch.rand(R, teacher.image_size, teacher.image_size, 3, generator=g).requires_grad_()
    shape = (teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    draws = Draws(torch.randint(20, 980, (R, K), generator=g), torch.randn(R, K, *shape, generator=g))
    text, null = teacher.text_embeddings(PROMPTS[:R]), teacher.text_embeddings([""])
    options = GuidanceOptions(guidance_scale=5.0, num_draws=K, max_batch=3, vae_sample="mode")
    out = SDSGuidance(teacher, options)(rgb, text, null, step=0, draws=draws)
    gradient = torch.autograd.grad(out.loss_sds, rgb)[0]
    assert gradient.abs().max() > 1e-4
    expected = sds_by_hand(teacher, rgb, text, null, draws, out.scale)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


QUICK = ("Stable Diffusion 1, 2", "Stable Diffusion XL", "PixArt-sigma")  # the others take 1 to 10 s


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in families("K = 8 unbiased")]
)
def test_eight_draws_have_the_mean_of_one(name: str, teachers: dict[str, Any]) -> None:
    """Within 4 standard errors, over a fixed direction; the proposal follows the weight, in strata."""
    teacher, g = teachers[name], torch.Generator().manual_seed(3)
    n, channels = teacher.latent_size, teacher.latent_channels
    z, direction = (torch.randn(1, channels, n, n, generator=g) for _ in range(2))
    text, null = teacher.text_embeddings(["a cup"]), teacher.text_embeddings([""])
    means, errors = [], []
    for K, repeats, more in ((1, 384, {"proposal": "uniform"}), (8, 96, {"proposal": "weight", "stratify": "render"})):
        options = GuidanceOptions(guidance_scale=2.0, num_draws=K, seed=K, **more)
        guidance = SDSGuidance(teacher, options)
        rgb = z.permute(0, 2, 3, 1).expand(48, -1, -1, -1).clone().requires_grad_()
        values = []
        for _ in range(repeats // 48):
            loss = guidance(rgb, text, null, step=0, rgb_as_latents=True).loss_sds
            gradient = torch.autograd.grad(loss, rgb)[0] * 48  # of each render's own draws
            values.append((gradient * direction.permute(0, 2, 3, 1)).sum((1, 2, 3)))
        each = torch.cat(values)
        means.append(float(each.mean()))
        errors.append(float(each.std() / len(each) ** 0.5))
    assert errors[1] < errors[0]
    assert abs(means[0] - means[1]) < 4 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5


def test_latents_with_mean_and_deviation_are_decoded_as_the_pipeline_does(
    folders: dict[str, Path], teachers: dict[str, Any]
) -> None:
    teacher, vae = teachers["Playground 2.5"], json.loads((folders["Playground 2.5"] / "vae/config.json").read_text())
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(vae[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():  # of StableDiffusionXLPipeline, after its last step
        expected = teacher.vae.decode(z * std / vae["scaling_factor"] + mean, return_dict=False)[0] / 2 + 0.5
        torch.testing.assert_close(teacher.decode(z, clamp=False), expected)
        images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        encoded = teacher.vae.encode(images * 2 - 1).latent_dist.mode()
        torch.testing.assert_close(
            teacher.encode(images, sample=False) * std / vae["scaling_factor"] + mean, encoded, rtol=1e-4, atol=1e-5
        )


def test_an_encoder_without_noise_gives_one_value(teachers: dict[str, Any]) -> None:
    teacher = teachers["SANA"]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, std = teacher.posterior(images)
        expected = teacher.vae.encode(images * 2 - 1).latent * 0.4
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(teacher.encode(images), expected)
        assert not std.any()
        torch.testing.assert_close(teacher.decode(mean, clamp=False), teacher.vae.decode(mean / 0.4).sample / 2 + 0.5)


def test_the_latents_of_a_model_without_vae_are_pixels(teachers: dict[str, Any]) -> None:
    teacher = teachers["DeepFloyd IF"]
    assert (teacher.latent_channels, teacher.latent_size, teacher.image_size) == (3, 16, 16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = teacher.encode(images)
    torch.testing.assert_close(z, 2 * images - 1)
    torch.testing.assert_close(teacher.decode(z), images)
    assert torch.autograd.grad(z.sum(), images)[0].eq(2).all()
    rgb = torch.rand(1, 40, 24, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    text, null = teacher.text_embeddings(["a cup"]), teacher.text_embeddings([""])
    out = SDSGuidance(teacher, GuidanceOptions(seed=0))(rgb, text, null, step=0)
    assert out.latents.shape == (1, 3, 16, 16)
    assert torch.autograd.grad(out.loss_sds, rgb)[0].any()


# --- what is refused


def edited(source: Path, target: Path, file: str, **values: Any) -> Path:
    shutil.copytree(source, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return target


@pytest.mark.parametrize(
    ("name", "file", "values", "said"),
    [
        (
            "PixArt-sigma", "model_index.json",
            {"_class_name": "HunyuanDiTPipeline", "transformer": ["diffusers", "HunyuanDiT2DModel"]},
            "it holds a HunyuanDiTPipeline whose transformer is a HunyuanDiT2DModel, and what is read here is Stable",
        ),
        (
            "DeepFloyd IF", "model_index.json",
            {"_class_name": "MVDreamPipeline", "unet": ["unet", "MultiViewUNetModel"]},
            "whose unet is a MultiViewUNetModel (MVDream's, four views at once, for which diffusers has no class), and",
        ),
        (
            "DeepFloyd IF", "unet/config.json", {"in_channels": 6, "class_embed_type": "timestep"},
            "the UNet takes 6 channels and images have 3 (an inpainting, depth or upscaling",
        ),
        ("DeepFloyd IF", "model_index.json", {"_class_name": "IFSuperResolutionPipeline"}, "no text-to-image teacher"),
        (
            "Stable Diffusion 1, 2", "model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"},
            "holds a StableDiffusionInpaintPipeline, and such a model is no text-to-image teacher",
        ),
        ("Stable Diffusion 1, 2", "unet/config.json", {"in_channels": 9}, "takes 9 channels and the VAE gives 4 (an"),
        ("SANA", "scheduler/scheduler_config.json", {"_class_name": "SCMScheduler"}, "is 'SCMScheduler', a scheduler"),
        ("FLUX.1", "model_index.json", {"_class_name": "FluxFillPipeline"}, "holds a FluxFillPipeline, and such a"),
        ("FLUX.1", "transformer/config.json", {"in_channels": 96}, "takes 96 channels and the VAE gives 4, 4 of which"),
        ("Playground 2.5", "vae/config.json", {"latents_std": None}, "latents_mean and latents_std must both be lists"),
        ("Stable Diffusion 3", "transformer/config.json", {"in_channels": 9}, "an inpainting, depth or upscaling"),
        ("Stable Diffusion 3", "model_index.json", {"text_encoder": [None, None]}, "it lists no text_encoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    name: str, file: str, values: Any, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = edited(folders[name], tmp_path / "copy", file, **values)
    with pytest.raises(CarvError) as caught:
        load_teacher(str(folder), device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_command_for_one_family_refuses_another(folders: dict[str, Path]) -> None:
    with pytest.raises(CarvError, match=r"holds FLUX.1, and carv distill works with Stable Diffusion 1.x or 2.x alone"):
        find_model(str(folders["FLUX.1"]), only=STABLE_DIFFUSION, use="carv distill")
    with pytest.raises(CarvError, match=r"are for a UNet, and FLUX.1 has none"):
        load_teacher(str(folders["FLUX.1"]), device="cpu", attention_slicing=True)


def test_distillation_refuses_other_noise(sd_folder: Path, tmp_path: Path) -> None:
    folder = edited(sd_folder, tmp_path / "copy", "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}))
    with pytest.raises(
        CarvError,
        match=r"was trained on the noise of edm, and carv distill, which .* works with variance-preserving noise alone",
    ):
        _check_model(str(folder))


def test_t5_may_be_absent_from_stable_diffusion_3(folders: dict[str, Path], tmp_path: Path) -> None:
    nothing = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    folder = edited(folders["Stable Diffusion 3"], tmp_path / "copy", "model_index.json", **nothing)
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    text = load_teacher(str(folder), device="cpu").text_embeddings(["a cup"])
    pipeline = load_pipeline(folder, text_encoder_3=None, tokenizer_3=None)
    expected, _, pooled, _ = pipeline.encode_prompt("a cup", None, None, do_classifier_free_guidance=False)
    torch.testing.assert_close(unpack(text, 40, 24), (expected, pooled))


def test_distilled_guidance_is_an_option_and_its_absence_is_said(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_teacher(str(folders["FLUX.1"]), device="cpu").distilled_guidance == 3.5
    assert load_teacher(str(folders["FLUX.1"]), device="cpu", distilled_guidance=1).distilled_guidance == 1.0
    assert not caplog.records
    from safetensors.torch import load_file, save_file

    folder = edited(folders["FLUX.1"], tmp_path / "copy", "transformer/config.json", guidance_embeds=False)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "guidance" not in k}, file, metadata={"format": "pt"})
    load_teacher(str(folder), device="cpu")
    assert "no embedded guidance, as FLUX.1-schnell" in caplog.text
