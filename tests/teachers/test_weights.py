"""Weights that load and are of no use, and models that were changed after they had been loaded: one sentence each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.io.tensor_files import TensorHead, check_filled, check_plain
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


@pytest.fixture
def teacher(sd_folder: Path) -> Any:
    return StableDiffusionTeacher.load(str(sd_folder), device="cpu")


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_in.weight", torch.ones(8, 4, 3, 3, dtype=torch.int8)),
        ("conv_in.bias", torch.ones(8, dtype=torch.bool)),
        ("conv_in.weight", torch.ones(8, 4, 3, 3, dtype=torch.complex64)),
        ("conv_in.scale_weight", torch.ones(())),
        ("conv_in.weight_scale_inv", torch.ones(1, 1)),
        ("scaled_fp8", torch.ones(2)),
    ],
)
def test_quantised_weights_are_not_read_as_plain_ones(key: str, value: Tensor, copy: Path) -> None:
    rewrite(copy / WEIGHTS, lambda tensors: tensors.update({key: value}))
    with pytest.raises(CarvError, match=rf"{WEIGHTS} holds {key} of type \w+, so its weights were quantised, and no"):
        resolve_model(str(copy))
    config = copy / "unet/config.json"  # which says how, and then diffusers loads them
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "x"}}))
    assert resolve_model(str(copy)) == copy


def test_other_numbers_in_a_file_are_no_weights() -> None:
    heads = {"position_ids": ("I64", (1, 77)), "logit_scale": ("F32", ()), "a.weight": ("F8_E4M3", (2, 2))}
    heads |= {"num_updates": ("I32", ()), "layer_scale": ("F16", (4,)), "scale_shift_table": ("BF16", (6, 4))}
    check_plain({key: TensorHead(*head) for key, head in heads.items()}, "a file", "mend it")


def test_a_file_of_zeros_is_half_a_download(copy: Path) -> None:
    rewrite(copy / WEIGHTS, lambda tensors: [x.zero_() for x in list(tensors.values())[: len(tensors) // 2]])
    with pytest.raises(CarvError, match=rf"{WEIGHTS}: \d+ of its \d+ matrices hold zeros alone; mend or download"):
        load_teacher(str(copy), device="cpu")
    some = {str(n): torch.eye(16)[n:] for n in range(4)} | {"zero": torch.zeros(9, 9), "bias": torch.zeros(9)}
    check_filled(some, "a file", "mend it")


def test_a_tensor_in_two_shards_has_one_value(copy: Path) -> None:
    file = copy / WEIGHTS
    tensors, shards = load_file(file), [file.with_name(f"{n}.safetensors") for n in range(2)]
    file.unlink()
    names = {key: shards[n % 2].name for n, key in enumerate(tensors)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for shard in shards:
        own = {key: value for key, value in tensors.items() if names[key] == shard.name}
        save_file({**own, "conv_in.weight": tensors["conv_in.weight"]}, shard, metadata={"format": "pt"})
    assert resolve_model(str(copy)) == copy  # twice the same
    for other in (tensors["conv_in.weight"] + 1, tensors["conv_in.weight"].half()):
        rewrite(shards[1], lambda held: held.update({"conv_in.weight": other}))  # noqa: B023
        with pytest.raises(CarvError, match=r"1.safetensors: it holds conv_in.weight with other values than 0.saf"):
            resolve_model(str(copy))


def test_a_unet_that_predicts_a_variance_too_is_named(copy: Path) -> None:
    config = copy / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "out_channels": 8}))
    with pytest.raises(CarvError, match="the UNet gives 8 channels, a learned variance say, and latents have 4"):
        resolve_model(str(copy))


def test_an_adapter_of_parts_that_the_model_lacks_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    for part in ("transformer", "text_encoder_2"):
        names = (f"{part}.a.to_q.lora_A.weight", f"{part}.a.to_q.lora_B.weight")
        save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "a.safetensors")
        with pytest.raises(CarvError, match=f"a.safetensors is for {part}, and the model has unet, .*text_encoder"):
            load_teacher(str(sd_folder), device="cpu", loras=[str(tmp_path / "a.safetensors")])


def test_weights_that_were_moved_or_converted_later_are_named(teacher: Any) -> None:
    z, t, image = torch.ones(1, 4, 8, 8), torch.tensor([5]), torch.rand(1, 3, 16, 16)
    text = teacher.text_embeddings(["a"])
    teacher.unet.half()
    with pytest.raises(CarvError, match=r"the network of .* has weights of torch.float16 on cpu, and torch.float32 on"):
        teacher.eps_hat(z, t, text)
    teacher.unet.float().register_forward_hook(lambda *_: ("not", "tensors"))
    with pytest.raises(CarvError, match=r"the network of .* returned 'not' in place of a prediction; a hook on it"):
        teacher.eps_hat(z, t, text)
    for change in ("half", "double"):
        getattr(teacher.vae, change)()
        for call in (lambda: teacher.encode(image), lambda: teacher.decode(z), lambda: teacher.posterior(image)):
            with pytest.raises(CarvError, match=r"the VAE of .* when the teacher was made: put them back, or make"):
                call()


def test_a_failure_of_a_model_with_layers_in_another_type_is_not_blamed_on_that(teacher: Any) -> None:
    network = teacher.unet
    network.conv_out.half()  # as diffusers keeps some layers of some models in float32
    mixed = Denoiser(network, teacher.schedule)
    with pytest.raises(RuntimeError, match="type") as failure:
        mixed.eps_hat(torch.ones(1, 4, 8, 8), torch.tensor([5]), teacher.text_embeddings(["a"]))
    assert not isinstance(failure.value, CarvError)


def test_a_model_that_is_loaded_in_inference_mode_can_be_differentiated_through(sd_folder: Path) -> None:
    with torch.inference_mode():
        teacher = load_teacher(str(sd_folder), device="cpu")
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    teacher.encode(image).sum().backward()
    assert image.grad is not None
    with pytest.raises(CarvError, match="device is meta, where a model has no weights; give cpu"):
        load_teacher(str(sd_folder), device="meta")
