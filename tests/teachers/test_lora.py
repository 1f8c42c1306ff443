"""The LoRA against merged weights and diffusers' own class embedding; what it leaves alone."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from carv_3d.errors import CarvError
from carv_3d.objectives.score_matching import squared_errors
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.lora import CameraLora, LowRank
from carv_3d.teachers.lora_score import LoraScore, check_pair
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def trained(lora: CameraLora, seed: int = 0) -> CameraLora:
    """As if it had been trained: nothing of it is zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora.layers.values():
            layer.up.weight.copy_(0.3 * torch.randn(layer.up.weight.shape, generator=g))
    return lora


def merged(folder: Path, lora: CameraLora) -> Any:
    """A UNet of its own with W + up down in place of W, and the camera as diffusers' class embedding."""
    unet = StableDiffusionTeacher.load(str(folder), device="cpu").unet
    modules = dict(unet.named_modules())
    with torch.no_grad():
        for name, module in modules.items():
            key = name.replace(".", "_")
            if key in lora.layers:
                module.weight += lora.layers[key].up.weight @ lora.layers[key].down.weight
    unet.class_embedding = lora.camera_embedding
    return unet


def samples(n: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 4, 8, 8, generator=g),
        torch.randint(20, 980, (n,), generator=g),
        torch.randn(n, 20, 16, generator=g),
        torch.randn(n, 16, generator=g),
    )


@pytest.fixture
def teacher(sd_folder: Path) -> Any:
    return StableDiffusionTeacher.load(str(sd_folder), device="cpu")  # its own: hooks are put on it


def test_it_is_the_merged_weights_and_a_class_embedding(teacher: Any, sd_folder: Path) -> None:
    lora_score = LoraScore(teacher, rank=3)
    unet = merged(sd_folder, trained(lora_score.lora))
    z, t, text, camera = samples(3)
    with torch.no_grad():
        actual = lora_score.eps_hat(z, t, text, camera)
        expected = unet(z, t, encoder_hidden_states=text, class_labels=camera).sample
        assert not torch.allclose(actual, teacher.eps_hat(z, t, text), atol=1e-2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_every_attention_layer_has_one_and_the_unet_keeps_its_parameters(teacher: Any) -> None:
    before = set(teacher.unet.state_dict())
    lora = CameraLora(teacher.unet)
    assert set(teacher.unet.state_dict()) == before
    blocks = [m for m in teacher.unet.modules() if hasattr(m, "to_q")]
    assert len(lora.layers) == 4 * len(blocks) > 0
    lora_ids = {id(p) for p in lora.parameters()}
    assert not lora_ids & {id(p) for p in teacher.unet.parameters()}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in lora.parameters())


def test_outside_of_its_calls_the_teacher_is_what_it_was(teacher: Any, sd_teacher: Any) -> None:
    z, t, text, camera = samples(2)
    lora_score = LoraScore(teacher)
    trained(lora_score.lora)
    with torch.no_grad():
        lora_score.eps_hat(z, t, text, camera)
        assert torch.equal(teacher.eps_hat(z, t, text), sd_teacher.eps_hat(z, t, text))


def test_before_training_only_the_camera_matters(teacher: Any) -> None:
    lora_score = LoraScore(teacher)
    assert lora_score.lora.untouched
    z, t, text, camera = samples(2)
    with torch.no_grad():
        plain = teacher.eps_hat(z, t, text)
        assert not torch.allclose(lora_score.eps_hat(z, t, text, camera), plain, atol=1e-4)
        for p in lora_score.lora.camera_embedding.parameters():
            p.zero_()
        torch.testing.assert_close(lora_score.eps_hat(z, t, text, camera), plain)
    assert not trained(lora_score.lora).untouched


def test_half_precision_keeps_float32_weights() -> None:
    layer = LowRank(4, 6, 2)
    nn.init.ones_(layer.up.weight)
    x = torch.full((1, 4), 1e-4, dtype=torch.float16)
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x)[0, 0], (layer.down.weight @ x[0].float()).sum())


def test_a_half_precision_unet_trains_the_float32_lora(sd_folder: Path) -> None:
    z, t, text, camera = samples(4)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    grads = []
    for dtype in (torch.float32, torch.bfloat16):  # float16's place on a CPU
        torch.manual_seed(0)
        teacher = StableDiffusionTeacher.load(str(sd_folder), device="cpu", with_text=False)
        lora_score = LoraScore(Denoiser(teacher.unet.to(dtype), teacher.schedule))
        trained(lora_score.lora)
        errors = squared_errors(lora_score, z, t, eps, text, camera)
        assert errors.dtype == torch.float32
        actual = torch.autograd.grad(errors.sum(), lora_score.parameters())
        assert all(g.dtype == torch.float32 for g in actual)
        grads.append(torch.cat([g.flatten() for g in actual]))
    assert float(torch.cosine_similarity(*grads, dim=0)) > 0.99


@pytest.mark.parametrize("kind", ["sd_folder", "v_prediction_folder"])
def test_the_error_is_in_what_the_model_predicts(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    lora_score = LoraScore(StableDiffusionTeacher.load(str(folder), device="cpu"))
    unet = merged(folder, trained(lora_score.lora))
    z, t, text, camera = samples(3)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(str(folder), subfolder="scheduler")
    target = eps if kind == "sd_folder" else scheduler.get_velocity(z, eps, t)
    prediction = unet(scheduler.add_noise(z, eps, t), t, encoder_hidden_states=text, class_labels=camera).sample
    errors = squared_errors(lora_score, z, t, eps, text, camera)
    expected = (prediction - target).square().sum((1, 2, 3))
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-3)


def test_models_that_do_not_fit_are_named(teacher: Any, xl_folder: Path, sd_folder: Path) -> None:
    from carv_3d.core.schedule import NoiseSchedule
    from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

    check_pair(teacher, StableDiffusionTeacher.load(str(sd_folder), device="cpu"))
    with pytest.raises(CarvError, match="text 16 wide and text 40 wide"):
        check_pair(teacher, StableDiffusionXLTeacher.load(str(xl_folder), device="cpu", with_text=False))
    other = Denoiser(teacher.unet, NoiseSchedule.scaled_linear(beta_end=0.02), name="another")
    with pytest.raises(CarvError, match="another do not fit: their noise schedules differ"):
        check_pair(teacher, other)


def test_a_unet_without_attention_and_a_rank_of_none_are_refused(teacher: Any) -> None:
    with pytest.raises(CarvError, match="no attention layers"):
        CameraLora(nn.Linear(2, 2))
    with pytest.raises(CarvError, match="lora_rank is 0"):
        CameraLora(teacher.unet, rank=0)
    assert CameraLora(teacher.unet, rank=np.int64(2)).layers  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_the_variant_by_its_own_layers(copied: Callable[[Any], Any], teacher: Any) -> None:
    first = LoraScore(teacher)
    second = copied(first)
    trained(second.lora)
    z, t, text, camera = samples(1)
    with torch.no_grad():
        assert torch.equal(second.denoiser.eps_hat(z, t, text), teacher.eps_hat(z, t, text))
        assert not torch.allclose(second.eps_hat(z, t, text, camera), first.eps_hat(z, t, text, camera), atol=1e-2)
        trained(first.lora)
        assert torch.equal(second.eps_hat(z, t, text, camera), first.eps_hat(z, t, text, camera))


def test_a_unet_keeps_nothing_of_a_lora_that_is_gone(teacher: Any) -> None:
    lora = CameraLora(teacher.unet)
    hooked = copy.deepcopy(teacher.unet)  # its copy of the LoRA is gone at once
    del lora
    gc.collect()
    assert not any(module._forward_hooks for module in teacher.unet.modules())
    z, t, text, _ = samples(1)
    with torch.no_grad():
        assert torch.equal(hooked(z, t, text).sample, teacher.unet(z, t, text).sample)


def test_it_is_active_in_the_thread_that_asks_for_it(teacher: Any) -> None:
    z, t, text, camera = samples(1)
    lora = trained(CameraLora(teacher.unet))
    got: list[Any] = []
    with torch.no_grad(), lora.active(camera):
        thread = threading.Thread(target=lambda: got.append(teacher.unet(z, t, text).sample))
        thread.start()
        thread.join()
        assert not torch.equal(got[0], teacher.unet(z, t, text).sample)
    with torch.no_grad():
        torch.testing.assert_close(got[0], teacher.unet(z, t, text).sample)
