"""LoRA adapters from files, in PEFT's, diffusers' and kohya's names, are added to the weights; odd ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.lora_files import read_lora

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def matrices(weight: Tensor, rank: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=g)
    return up, torch.randn(rank, *weight.shape[1:], generator=g)


def peft(part: str, layer: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    return {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}


def kohya(part: str, layer: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    name = f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}"
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}


def diffusers_old(part: str, layer: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    return {f"{part}.{layer}.lora.down.weight": down, f"{part}.{layer}.lora.up.weight": up}


@pytest.mark.parametrize(
    ("names", "alpha"), [(peft, 2.0), (kohya, 1.0), (diffusers_old, 2.0)], ids=["peft", "kohya", "diffusers"]
)
@pytest.mark.parametrize(
    ("part", "layer"),
    [
        ("unet", f"{LAYER}.to_q"), ("unet", f"{LAYER}.to_out.0"), ("unet", "mid_block.attentions.0.proj_in"),
        ("text_encoder", TEXT),
    ],
)  # fmt: skip
def test_an_adapter_is_added_to_the_weights(
    names: Any, alpha: float, part: str, layer: str, sd_folder: Path, tmp_path: Path
) -> None:
    plain = load_teacher(str(sd_folder), device="cpu")
    before = {p: {k: v.clone() for k, v in getattr(plain, p).state_dict().items()} for p in ("unet", "text_encoder")}
    (key,) = (k for k in before[part] if k in (f"{layer}.weight", f"{layer.removeprefix('text_model.')}.weight"))
    up, down = matrices(before[part][key])
    save_file(names(part, layer, up, down), tmp_path / "a.safetensors")
    changed = load_teacher(str(sd_folder), device="cpu", loras=[f"{tmp_path / 'a.safetensors'}:0.5"])
    product = torch.einsum("or,ri...->oi...", up.flatten(1), down) * alpha / 2
    for p, weights in before.items():
        for name, value in getattr(changed, p).state_dict().items():
            expected = weights[name] + 0.5 * product if (p, name) == (part, key) else weights[name]
            torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_what_peft_wrote_of_alpha_counts(sd_folder: Path, tmp_path: Path) -> None:
    weight = load_teacher(str(sd_folder), device="cpu").unet.state_dict()[f"{LAYER}.to_q.weight"]
    up, down = matrices(weight)
    for settings, factor in (
        ({"unet.lora_alpha": 6}, 3),
        ({"unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / 2**0.5),
    ):
        file = tmp_path / "a.safetensors"
        save_file(peft("unet", f"{LAYER}.to_q", up, down), file, {"lora_adapter_metadata": json.dumps(settings)})
        changed = load_teacher(str(sd_folder), device="cpu", loras=[str(file), f"{file}:-0.5"])
        actual = changed.unet.state_dict()[f"{LAYER}.to_q.weight"]
        torch.testing.assert_close(actual, weight + 0.5 * factor * up @ down)
    save_file(peft("unet", f"{LAYER}.to_q", up, down), file, {"lora_adapter_metadata": '{"unet.use_dora": true}'})
    with pytest.raises(CarvError, match=r"is of a kind .DoRA, or alphas by pattern"):
        load_teacher(str(sd_folder), device="cpu", loras=[str(file)])
    save_file(peft("unet", f"{LAYER}.to_q", up, down), file, {"lora_adapter_metadata": "{"})
    with pytest.raises(CarvError, match=r"what PEFT wrote in .*a\.safetensors is not readable JSON"):
        load_teacher(str(sd_folder), device="cpu", loras=[str(file)])


def test_adapters_of_text_encoders_that_are_not_loaded_are_named(
    sd_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(peft("text_encoder", TEXT, torch.ones(16, 1), torch.ones(1, 16)), tmp_path / "a.safetensors")
    load_teacher(str(sd_folder), device="cpu", loras=[str(tmp_path / "a.safetensors")], with_text=False)
    assert "for text_encoder are left out: these were not loaded" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (peft("unet", "mid_block.nothing", torch.ones(4, 1), torch.ones(1, 4)), "and the model has no such layer"),
        (peft("unet", f"{LAYER}.to_q", torch.ones(4, 1), torch.ones(1, 4)), "(4, 4), and the model has a layer of (16"),
        ({f"unet.{LAYER}.to_q.lora_A.weight": torch.ones(1, 16)}, "lacks a matrix of unet.mid_block"),
        ({f"unet.{LAYER}.to_q.hada_w1_a": torch.ones(1, 16)}, "which is no matrix of a plain LoRA"),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 1) / 0, torch.ones(1, 16)), "NaN or infinite"),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 0), torch.ones(0, 16)), "(0, 16) torch.float32 and (16, 0) "),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 2), torch.ones(3, 16)), "are no two matrices of numbers of a "),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 1), torch.ones(16)), "are no two matrices of numbers of a rank"),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 1), torch.tensor(1.0)), "are no two matrices of numbers"),
        (peft("unet", f"{LAYER}.to_q", torch.ones(16, 1), torch.ones(1, 16).bool()), "(1, 16) torch.bool"),
        (peft("unet", f"{LAYER}.to_q", torch.full((16, 1), 3e38), torch.full((1, 16), 3e38)), "weights that are not f"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(
    tensors: dict[str, Tensor], said: str, sd_folder: Path, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CarvError) as caught:
        load_teacher(str(sd_folder), device="cpu", loras=[str(tmp_path / "a.safetensors")])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"unet.lora_alpha": "8"}', "what PEFT wrote of unet.lora_alpha is '8', and a finite number is due"),
        ('{"unet.lora_alpha": null}', "unet.lora_alpha is None"),
        ('{"unet.lora_alpha": NaN}', "unet.lora_alpha is nan"),
        ('{"unet.lora_alpha": 1e400}', "unet.lora_alpha is inf"),
        ('{"unet.lora_alpha": true}', "unet.lora_alpha is True"),
        ('{"unet.use_rslora": "false"}', "unet.use_rslora is 'false', and true or false is due"),
        ("[]", "does not hold a JSON object"),
    ],
)
def test_odd_settings_of_peft_are_one_sentence(settings: str, said: str, sd_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = peft("unet", f"{LAYER}.to_q", torch.ones(16, 1), torch.ones(1, 16))
    save_file(tensors, file, {"lora_adapter_metadata": settings})
    with pytest.raises(CarvError) as caught:
        load_teacher(str(sd_folder), device="cpu", loras=[str(file)])
    assert said in str(caught.value)


def test_the_name_and_scale_of_an_adapter(tmp_path: Path) -> None:
    file = tmp_path / "a:b.safetensors"
    file.touch()
    assert read_lora(str(file)) == (file, 1.0)
    assert read_lora(f"{file}:-0.25") == (file, -0.25)
    for text, said in ((f"{file}:nan", "is not finite"), (f"{file}:x", "no .safetensors"), ("a.bin:1", "a.bin is no")):
        with pytest.raises(CarvError, match=said):
            read_lora(text)
