"""Gradients of low-rank adapters: those of the layer `W + scale up down`, and of nothing else."""

from __future__ import annotations

import csv
from pathlib import Path

import noise_images
import numpy as np
import pytest
import torch
from commands import refusal
from noise_images import save
from PIL import Image
from safetensors.torch import save_file
from torch.func import functional_call

from carv_3d.attribution import FeatureMaker, FeatureOptions, GroupedDrawOptions
from carv_3d.attribution.lora import load_with_lora
from carv_3d.cli import main as cli
from carv_3d.errors import CarvError
from carv_3d.teachers.load import load_teacher

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.attentions.0.proj_in"  # a convolution in Stable Diffusion 1
FACTOR = 0.5 * 3 / 2  # the scale, and alpha over the rank


def adapters(teacher: object, path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Saves a LoRA of rank 2 of two layers; (up, down) of each."""
    weights, tensors, pairs = teacher.unet.state_dict(), {}, {}  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    for layer in (LAYER, CONV):
        weight = weights[f"{layer}.weight"]
        down = 0.1 * torch.randn(2, *weight.shape[1:], generator=generator)
        up = 0.1 * torch.randn(len(weight), 2, *weight.shape[2:], generator=generator)
        key = "lora_unet_" + layer.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(3.0)}
        pairs[layer] = (up, down)
    save_file(tensors, path)
    return pairs


def test_the_gradients_are_those_of_the_layers_with_their_adapters(sd_folder: Path, tmp_path: Path) -> None:
    plain = load_teacher(str(sd_folder), device="cpu")
    pairs = adapters(plain, tmp_path / "a.safetensors")
    teacher, model = load_with_lora(str(sd_folder), [f"{tmp_path / 'a.safetensors'}:0.5"], 4, 0)
    merged = load_teacher(str(sd_folder), device="cpu", loras=[f"{tmp_path / 'a.safetensors'}:0.5"])
    shape = (2, teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    z, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    t, cond = torch.tensor([100, 700]), teacher.text_embeddings(["a red mug", "a cup"])
    z_t = model.schedule.add_noise(z, eps, t)
    assert torch.equal(model.predict(z_t, t, cond), merged.predict(z_t, t, cond))
    with model.trainable() as parameters:
        loss = (model.predict(z_t, t, cond) - eps).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
    names = [name for name, _ in model.module.named_parameters()]
    leaves = {layer: [x.clone().requires_grad_() for x in pair] for layer, pair in pairs.items()}
    state = plain.unet.state_dict()
    changed = {
        f"{layer}.weight": state[f"{layer}.weight"] + FACTOR * torch.einsum("or,ri...->oi...", up.flatten(1), down)
        for layer, (up, down) in leaves.items()
    }
    whole = functional_call(plain.unet, changed, (z_t, t), {"encoder_hidden_states": cond, "return_dict": False})[0]
    (whole - eps).square().mean().backward()
    assert len(gradients) == 4
    for name, gradient in zip(names, gradients):
        layer = LAYER if "to_q" in name else CONV
        up, down = leaves[layer]
        expected = (up if ".up." in name else down).grad
        assert expected is not None
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(gradient.view(expected.shape), expected, rtol=1e-4, atol=1e-8)


def test_fresh_adapters_project_each_layers_gradient_from_one_side(sd_folder: Path) -> None:
    teacher, model = load_with_lora(str(sd_folder), ["fresh"], 3, 0)
    plain = load_teacher(str(sd_folder), device="cpu")
    z = torch.randn(1, teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    t, cond = torch.tensor([300]), teacher.text_embeddings(["a red mug"])
    assert torch.equal(model.predict(z, t, cond), plain.predict(z, t, cond))
    with model.trainable() as parameters:
        gradients = torch.autograd.grad(model.predict(z, t, cond).square().mean(), parameters)
    got = dict(zip((name for name, _ in model.module.named_parameters()), gradients))
    weight = plain.unet.get_parameter(f"{LAYER}.weight").requires_grad_()
    (full,) = torch.autograd.grad(plain.predict(z, t, cond).square().mean(), weight)
    branch = "lora." + LAYER.replace(".", "/") + "/0"
    down = model.module.get_parameter(f"{branch}.down.weight")
    torch.testing.assert_close(got[f"{branch}.up.weight"], full @ down.T, rtol=1e-4, atol=1e-9)
    assert not got[f"{branch}.down.weight"].any()
    assert {name.partition("attn")[2][2:] for name in got} >= {"to_q/0.up.weight", "to_out/0/0.up.weight"}
    again = load_with_lora(str(sd_folder), ["fresh"], 3, 0)[1]
    assert again.fingerprint() == model.fingerprint()
    assert load_with_lora(str(sd_folder), ["fresh"], 3, 1)[1].fingerprint() != model.fingerprint()


def test_the_command_takes_gradients_of_adapters(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", i)
    adapters(load_teacher(str(sd_folder), device="cpu"), tmp_path / "a.safetensors")
    words = noise_images.words("in/1.png", "in", sd_folder)
    assert cli.main([*words, "--lora", "a.safetensors:0.5", "--out", "trained"]) == 0
    assert cli.main([*words, "--lora", "fresh", "--fresh-rank", "2", "--out", "fresh"]) == 0
    assert cli.main([*words, "--out", "all"]) == 0
    columns = {}
    for name in ("trained", "fresh", "all"):
        rows = list(csv.DictReader(Path(name, "scores.csv").read_text().splitlines()))
        columns[name] = {row["image"]: float(row["score"]) for row in rows}
    teacher, model = load_with_lora(str(sd_folder), ["a.safetensors:0.5"], 16, 0)
    from carv_3d.attribution import cosine
    from carv_3d.attribution.encoded import embed, encode_images

    def feature(index: int, draws: GroupedDrawOptions, role: str, key: str) -> torch.Tensor:
        array = np.array(Image.open(tmp_path / "in" / f"{index}.png"))
        maker = FeatureMaker(model, FeatureOptions(draws=draws, dim=64), role)
        return maker.feature(key, encode_images([array], teacher)[0], embed("", teacher))

    few, many = GroupedDrawOptions(num_draws=4), GroupedDrawOptions(num_draws=16, groups=8)
    expected = cosine(feature(1, many, "query", "0")[None], feature(2, few, "train", "2.png")[None])
    assert columns["trained"]["2.png"] == pytest.approx(float(expected.values[0, 0]), rel=1e-3)
    assert len({tuple(sorted(c.items())) for c in columns.values()}) == 3
    assert "a.safetensors:0.5, 128 parameters" in Path("trained/report.html").read_text()
    capsys.readouterr()
    for lora, why in (
        ("fresh,a.safetensors", "fresh adapters stand alone"),
        ("b.safetensors", "b.safetensors is no .safetensors file"),
    ):
        assert why in refusal(capsys, *words, "--lora", lora, "--out", "no")


def test_adapters_of_the_text_encoders_alone_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    file = tmp_path / "a.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.ones(1, 16), f"{layer}.lora_B.weight": torch.ones(16, 1)}, file)
    with pytest.raises(CarvError, match="changes the text encoders alone"):
        load_with_lora(str(sd_folder), [str(file)], 4, 0)
