"""Folders as the hub delivers them: half precision of some parts, shards, links into a cache, quantised weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_families import build_family

from carv_3d.cli.doctor_model import examine
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.availability import needed_files
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.families import STABLE_DIFFUSION, STABLE_DIFFUSION_3
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.model_folder import weight_files
from carv_3d.teachers.quantized import check_quantized


def in_half(file: Path, name: str) -> None:
    """The file's tensors as float16 under another name, in its place."""
    save_file({k: v.half() for k, v in load_file(file).items()}, file.with_name(name), {"format": "pt"})
    file.unlink()


def weights(teacher: Any) -> dict[str, torch.Tensor]:
    encoders = [teacher.text_encoder] if hasattr(teacher, "text_encoder") else list(teacher.encoders.values())
    named = enumerate([teacher.network, teacher.vae, *encoders])
    return {f"{i}.{key}": value for i, module in named for key, value in module.state_dict().items()}


def test_half_precision_of_some_parts_goes_with_whole_ones(sd_folder: Path, sd_teacher: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "model"))
    in_half(folder / "unet" / "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    in_half(folder / "text_encoder" / "model.safetensors", "model.fp16.safetensors")
    actual, expected = weights(load_teacher(str(folder), device="cpu")), weights(sd_teacher)
    assert set(actual) == set(expected)
    for key, value in expected.items():
        due = value if key.startswith("1.") else value.half().float()  # the VAE's file is as it was
        assert torch.equal(actual[key], due), key
    assert not torch.equal(actual["0.conv_in.weight"], expected["0.conv_in.weight"])


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_one_model(variant: str | None, tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel
    from transformers import T5EncoderModel

    folder = build_family("Stable Diffusion 3", tmp_path / "whole")
    sharded = Path(shutil.copytree(folder, tmp_path / "sharded"))
    for part, kind in (("transformer", SD3Transformer2DModel), ("text_encoder_3", T5EncoderModel)):
        model = kind.from_pretrained(folder / part)
        shutil.rmtree(sharded / part)
        model.save_pretrained(sharded / part, max_shard_size="12KB", variant=variant)
        files = weight_files(sharded, part)
        assert len(files) > 2
        listing = [f"{part}/{file.name}" for file in (sharded / part).iterdir()]
        assert {f"{part}/{file.name}" for file in files} <= set(needed_files(listing, STABLE_DIFFUSION_3))
    actual, expected = (weights(load_teacher(str(name), device="cpu")) for name in (sharded, folder))
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = build_family("Stable Diffusion 3", tmp_path / "model")
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    model.save_pretrained(folder / "transformer", max_shard_size="12KB")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    lost = weight_files(folder, "transformer")[1]
    lost.unlink()
    with pytest.raises(CarvError, match=f"{lost.name}: it is missing"):
        load_teacher(str(folder), device="cpu")


def in_a_cache(folder: Path, cache: Path) -> Path:
    """The folder as the hub's library keeps it: links in snapshots/ to files in blobs/, named by their content."""
    root = cache / "models--o--n"
    snapshot = root / "snapshots" / ("a" * 40)
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        blob = root / "blobs" / f"{number:040x}"
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_links_into_a_cache_are_followed(sd_folder: Path, sd_teacher: Any, tmp_path: Path) -> None:
    snapshot, expected = in_a_cache(sd_folder, tmp_path), weights(sd_teacher)
    for name, more in ((str(snapshot), {}), ("o/n", {"cache_dir": str(tmp_path), "local_files_only": True})):
        actual = weights(load_teacher(name, device="cpu", **more))
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").resolve().unlink()
    with pytest.raises(CarvError, match=r"unet/diffusion_pytorch_model.safetensors is missing"):
        load_teacher(str(snapshot), device="cpu")


# --- quantised weights, which are loaded on CUDA alone: a device that is named stands for it here


BITS = {"_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "load_in_4bit": True, "quant_method": "bitsandbytes"}


def quantized(folder: Path, part: str, said: Any = BITS) -> Path:
    file = folder / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": said}))
    return folder


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_quantised_weights_are_refused_on_a_cpu(part: str, sd_folder: Path, tmp_path: Path) -> None:
    folder = quantized(Path(shutil.copytree(sd_folder, tmp_path / "model")), part)
    said = f"the {part} of {folder} holds weights that bitsandbytes quantised, and on cpu these are not run: name a"
    with pytest.raises(CarvError) as caught:
        load_teacher(str(folder), device="cpu")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    finding = examine(str(folder))[-1]
    assert finding.needed
    assert not finding.found
    assert "that bitsandbytes quantised" in finding.detail


def test_quantised_weights_on_cuda_stay_where_the_libraries_put_them(sd_folder: Path, tmp_path: Path) -> None:
    folder = quantized(Path(shutil.copytree(sd_folder, tmp_path / "model")), "unet")
    cuda = torch.device("cuda")
    assert check_quantized(folder, STABLE_DIFFUSION, cuda) == {"unet": "bitsandbytes"}
    assert check_quantized(sd_folder, STABLE_DIFFUSION, torch.device("cpu"), altered=True) == {}
    with pytest.raises(CarvError, match="no adapter is added and which cannot wait in the CPU's memory: leave loras"):
        check_quantized(folder, STABLE_DIFFUSION, cuda, altered=True)
    assert check_quantized(quantized(folder, "unet", [1]), STABLE_DIFFUSION, cuda) == {"unet": "an unknown method"}


def test_a_teacher_computes_in_the_type_of_what_is_not_quantised() -> None:
    network = torch.nn.Module()
    network.packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    network.norm = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    assert Denoiser(network, NoiseSchedule.scaled_linear()).dtype == torch.bfloat16
