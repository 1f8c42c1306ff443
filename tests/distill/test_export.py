"""The exported folder, run by stock diffusers: one evaluation of the UNet at T - 1, exactly the clean prediction."""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from carv_3d.distill import export
from carv_3d.distill.export import one_step_scheduler, save_one_step
from carv_3d.errors import CarvError
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

PROMPTS = ["a red mug", "a blue hat"]


def trained(teacher: StableDiffusionTeacher) -> torch.nn.Module:
    """The teacher's UNet, moved a little."""
    unet = copy.deepcopy(teacher.unet)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in unet.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return unet


@dataclass
class Made:
    teacher: StableDiffusionTeacher
    unet: torch.nn.Module
    folder: Path


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def made(request, sd_folder, v_prediction_folder, tmp_path_factory) -> Made:
    source = sd_folder if request.param == "epsilon" else v_prediction_folder
    teacher, folder = StableDiffusionTeacher.load(str(source), device="cpu"), tmp_path_factory.mktemp("one") / "model"
    unet = trained(teacher)
    save_one_step(folder, source, unet)
    return Made(teacher, unet, folder)


@pytest.fixture(scope="module")
def unet(sd_teacher) -> torch.nn.Module:
    return trained(sd_teacher)


def clean(unet: torch.nn.Module, teacher: StableDiffusionTeacher, z: torch.Tensor) -> torch.Tensor:
    """What the generator makes of noise, written out."""
    T = teacher.schedule.num_train_timesteps
    abar = teacher.schedule.alphas_cumprod[T - 1].double()
    alpha, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
    text = teacher.text_embeddings(PROMPTS)
    with torch.no_grad():
        out = unet(z, torch.full((len(z),), T - 1), encoder_hidden_states=text, return_dict=False)[0]
    return (z - sigma * out) / alpha if teacher.prediction_type == "epsilon" else alpha * z - sigma * out


def test_stock_diffusers_gives_the_clean_prediction_in_one_evaluation(made) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(made.folder))
    pipeline.set_progress_bar_config(disable=True)
    calls, forward = [], pipeline.unet.forward

    def counted(z, t, **more):
        calls.append((len(z), int(t)))
        return forward(z, t, **more)

    pipeline.unet.forward = counted
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    images = pipeline(
        PROMPTS, num_inference_steps=1, guidance_scale=1.0, generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images  # fmt: skip
    assert calls == [(2, 999)]
    torch.testing.assert_close(images, clean(made.unet, made.teacher, z), rtol=2e-5, atol=2e-5)
    untrained = clean(made.teacher.unet, made.teacher, z)
    assert not torch.allclose(images, untrained, rtol=0.01, atol=0.01)


def test_the_folder_loads_as_any_other_teacher(made) -> None:
    before, after = made.teacher, StableDiffusionTeacher.load(str(made.folder), device="cpu")
    assert after.prediction_type == before.prediction_type
    assert torch.equal(after.schedule.alphas_cumprod, before.schedule.alphas_cumprod)
    assert torch.equal(after.text_embeddings(PROMPTS), before.text_embeddings(PROMPTS))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after.decode(z), before.decode(z))
    for name, value in made.unet.state_dict().items():
        assert torch.equal(after.unet.state_dict()[name], value), name


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def test_weights_keep_the_teachers_type_and_nothing_names_the_machine(sd_folder, unet, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(sd_folder, half)
    for file in half.rglob("*.safetensors"):
        save_file({k: _half(v) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    for part in ("unet", "vae", "text_encoder"):
        config = half / part / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(half)}))
    (half / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that nobody reads")
    save_one_step(tmp_path / "model", half, unet)
    saved = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.float16}
    assert all(torch.equal(v, unet.state_dict()[k].half()) for k, v in saved.items())
    assert next(unet.parameters()).dtype == torch.float32  # the caller's is left as it was
    names = {str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert not any("fp16" in name for name in names)
    for name in names:
        if name.endswith((".json", ".md")):
            assert str(tmp_path) not in (tmp_path / "model" / name).read_text(), name
    code = (tmp_path / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    image = tmp_path / "image.png"
    code = code.replace('"this folder"', repr(str(tmp_path / "model"))).replace('"image.png"', repr(str(image)))
    exec(code, {})  # the card's own words
    assert image.stat().st_size > 50


def test_a_scheduler_of_another_kind_gives_its_betas_and_nothing_else(sd_folder, tmp_path) -> None:
    from diffusers import PNDMScheduler

    folder = tmp_path / "pndm"
    shutil.copytree(sd_folder, folder)
    PNDMScheduler(
        num_train_timesteps=100, beta_start=0.001, beta_end=0.02, beta_schedule="linear", skip_prk_steps=True,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    from carv_3d.teachers.loading import load_ddim

    scheduler = one_step_scheduler(load_ddim(folder))
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [99]
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.cumprod(1 - torch.linspace(0.001, 0.02, 100), 0))
    clipping = copy.deepcopy(load_ddim(folder))
    clipping.register_to_config(clip_sample=True, thresholding=True)
    scheduler = one_step_scheduler(clipping)
    scheduler.set_timesteps(1)
    z, eps = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2.0)
    abar = scheduler.alphas_cumprod[99]
    step = scheduler.step(eps, 99, z)
    torch.testing.assert_close(step.prev_sample, (z - (1 - abar).sqrt() * eps) / abar.sqrt())


def test_a_save_that_fails_leaves_the_older_folder_whole(sd_folder, unet, tmp_path, monkeypatch) -> None:
    folder, unet = tmp_path / "model", copy.deepcopy(unet)
    save_one_step(folder, sd_folder, unet)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with torch.no_grad():
        next(unet.parameters()).add_(1.0)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "one_step_scheduler", stop)  # after the parts and the UNet are written
        with pytest.raises(KeyboardInterrupt):
            save_one_step(folder, sd_folder, unet)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    save_one_step(folder, sd_folder, unet)
    changed = [p.name for p, content in before.items() if p.read_bytes() != content]
    assert changed == ["diffusion_pytorch_model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved_is_one_sentence_and_nothing_is_touched(sd_folder, xl_folder, unet, tmp_path) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(sd_folder, own)
    with pytest.raises(CarvError, match="the teacher itself"):
        save_one_step(own, own, unet)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years")
    with pytest.raises(CarvError, match="something else than a model"):
        save_one_step(full, sd_folder, unet)
    assert (full / "thesis.tex").read_text() == "years"
    with pytest.raises(CarvError, match="Stable Diffusion XL"):
        save_one_step(tmp_path / "out", xl_folder, unet)
    with pytest.raises(CarvError, match="not of the architecture"):
        save_one_step(tmp_path / "out", sd_folder, torch.nn.Linear(2, 2))
    assert not (tmp_path / "out").exists()
