"""Models as people have them: one file, another VAE, LoRA adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from torch import Tensor

from carv_3d.attribution.queries import run_model
from carv_3d.cli import doctor_model
from carv_3d.cli.doctor import main as doctor
from carv_3d.cli.doctor_model import examine
from carv_3d.compare import engine
from carv_3d.distill.command import _check_model
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml, load_config
from carv_3d.generate.trainer import load_teacher as load_configured
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.teachers.load import find_model, load_teacher
from carv_3d.teachers.lora_files import read_lora

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def modules(teacher: Any) -> list[Any]:
    texts = teacher.text.encoders if hasattr(teacher, "text") else [teacher.text_encoder]
    return [teacher.unet, teacher.vae, *texts]


@pytest.fixture(scope="module")
def one_file(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(sd_folder, tmp_path_factory.mktemp("single") / "model.safetensors")


# --- one file


@pytest.mark.parametrize("kind", ["sd_folder", "xl_folder"])
def test_one_file_is_the_folder_that_it_was_made_from(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(kind)
    file, config = write_single_file(folder, tmp_path / "model.safetensors"), tmp_path / "config"
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    whole, single = (
        load_teacher(str(name), device="cpu", model_config=given)
        for name, given in ((folder, None), (file, str(config)))
    )
    for ours, theirs in zip(modules(single), modules(whole)):
        actual, expected = ours.state_dict(), theirs.state_dict()
        assert set(actual) == set(expected)
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key
    assert torch.equal(single.text_embeddings(["mug"]), whole.text_embeddings(["mug"]))
    assert single.schedule.alphas_cumprod.equal(whole.schedule.alphas_cumprod)
    assert single.prediction_type == whole.prediction_type


def test_text_encoders_of_one_file_may_be_left_out(one_file: Path, sd_folder: Path) -> None:
    teacher = load_teacher(str(one_file), device="cpu", model_config=str(sd_folder), with_text=False)
    assert teacher.text_encoder is None
    assert teacher.tokenizer is None


def test_the_configurations_of_one_file_come_from_the_cache_and_never_from_the_hub(
    one_file: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(name: str, **how: Any) -> str:
        asked.append((name, how["local_files_only"]))
        return str(sd_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_model(str(one_file))[0] == sd_folder
    assert asked == [("stable-diffusion-v1-5/stable-diffusion-v1-5", True)]


def without(file: Path, out: Path, part: str) -> Path:
    save_file({k: v for k, v in load_file(file).items() if part not in k}, out)
    return out


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda f, to: f, None, "those of stable-diffusion-v1-5/stable-diffusion-v1-5 are sought in the hub's cache"),
        (lambda f, to: f, "nowhere", "model_config is nowhere, and there is no such folder"),
        (lambda f, to: f.parent, "nowhere", "model_config is for a single file, and"),
        (lambda f, to: shutil.copy(f, to.with_suffix(".ckpt")), "nowhere", "is no .safetensors file, which alone"),
        (lambda f, to: without(f, to, "middle_block.1.proj_in"), "xl", "does not fit the configurations in"),
        (lambda f, to: without(f, to, "middle_block.1.proj_in.weight"), "sd", "(it lacks tensors): name a"),
        (lambda f, to: without(f, to, "decoder.conv_out"), "sd", "(it lacks tensors): name a"),
        (lambda f, to: without(f, to, "self_attn.q_proj.weight"), "sd", "lacks 1 tensors of its text_encoder, such"),
    ],
)
def test_one_file_that_cannot_be_read_is_one_sentence(
    change: Callable[[Path, Path], Path], config: str | None, said: str, one_file: Path, sd_folder: Path,
    xl_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = change(one_file, tmp_path / "model.safetensors")
    folder = {"sd": str(sd_folder), "xl": str(xl_folder)}.get(config or "", config)
    with pytest.raises(CarvError) as caught:
        load_teacher(str(path), device="cpu", model_config=folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_distillation_refuses_one_file(one_file: Path) -> None:
    with pytest.raises(CarvError, match=r"is a single file, and carv distill.* name a diffusers folder"):
        _check_model(str(one_file))


def test_doctor_reads_one_file(one_file: Path, sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(sd_folder))
    monkeypatch.setattr(doctor_model, "_self_test", lambda *_: None)
    lines, whole = ({f.name: f for f in examine(str(name))[:-1]} for name in (one_file, sd_folder))
    assert lines["on disk"].detail.startswith(whole["on disk"].detail.partition(" (")[0])
    assert "in one file" in lines["on disk"].detail


def test_doctor_takes_the_options_of_a_models_files(
    one_file: Path, sd_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor([str(one_file), f"model_config={sd_folder}", "loras=[]"]) == 0
    out = capsys.readouterr().out
    assert f"Stable Diffusion 1.x or 2.x in {sd_folder}" in out
    assert f"model_name_or_path={one_file} model_config={sd_folder} loras=[]" in out
    assert doctor([str(sd_folder), "loras=[nowhere.safetensors]"]) == 1
    assert "the model does not run: nowhere.safetensors is no .safetensors file" in capsys.readouterr().out
    for words, said in (
        ([str(sd_folder), "num_draws=2"], "'num_draws=2' is no option of carv doctor, which takes model_config, vae"),
        (["vae=x"], "vae=x is of a model, and none is named"),
        ([str(sd_folder), "loras=5"], "loras is 5"),
    ):
        with pytest.raises(CarvError, match=said):
            doctor(words)
    with pytest.raises(CarvError, match="model_config is 5; it must be text"):
        find_model(str(one_file), model_config=5)  # type: ignore[arg-type]


# --- another VAE


@pytest.fixture
def other_vae(sd_folder: Path, tmp_path: Path) -> Path:
    """The same with other weights and another factor."""
    folder = shutil.copytree(sd_folder / "vae", tmp_path / "other")
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(
        {k: 1.5 * v for k, v in weights.items()}, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"}
    )
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 0.25}))
    return folder


@pytest.mark.parametrize("single", [False, True])
def test_another_vae_takes_the_place_of_the_models(
    single: bool, sd_folder: Path, one_file: Path, other_vae: Path
) -> None:
    more = {"model_config": str(sd_folder)} if single else {}
    teacher = load_teacher(str(one_file if single else sd_folder), device="cpu", vae=str(other_vae), **more)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(str(other_vae))
    with torch.no_grad():
        expected = vae.encode(2 * x - 1).latent_dist.mode() * 0.25
        torch.testing.assert_close(teacher.encode(x, sample=False), expected)
    within = load_teacher(str(sd_folder), device="cpu", vae=str(sd_folder))  # a model's
    assert within.vae.config.scaling_factor == 0.5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": "AutoencoderTiny"}, "holds a AutoencoderTiny, where Stable Diffusion 1.x or 2.x has a Auto"),
        ({"latent_channels": 16}, "latents of 16 channels, 2 times smaller than images, and the model takes 4 chann"),
        ({"block_out_channels": [4]}, "latents of 4 channels, 1 times smaller than images, and the model takes 4"),
        (None, "there is no config.json in"),
    ],
)
def test_another_vae_that_does_not_fit_is_one_sentence(
    values: dict[str, Any] | None, said: str, sd_folder: Path, other_vae: Path
) -> None:
    file = other_vae / "config.json"
    if values is None:
        file.unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(CarvError) as caught:
        load_teacher(str(sd_folder), device="cpu", vae=str(other_vae))
    assert said in str(caught.value)


# --- LoRA adapters


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


# --- as options


def test_options_reach_the_model(sd_folder: Path, one_file: Path, other_vae: Path, tmp_path: Path) -> None:
    lora = tmp_path / "a.safetensors"
    save_file(peft("unet", f"{LAYER}.to_q", torch.ones(16, 1), torch.ones(1, 16)), lora)
    guidance = "system.guidance."
    config = load_config(
        None,
        [
            f"{guidance}pretrained_model_name_or_path={one_file}", f"{guidance}model_config={sd_folder}",
            f"{guidance}vae={other_vae}", f"{guidance}loras=[{lora}:0.5]", "device=cpu",
        ],
        "a mug",
    )  # fmt: skip
    assert config.system.guidance.loras == [f"{lora}:0.5"]
    teacher: Any = load_configured(config)
    plain = load_teacher(str(sd_folder), device="cpu")
    key = f"{LAYER}.to_q.weight"
    torch.testing.assert_close(teacher.unet.state_dict()[key], plain.unet.state_dict()[key] + 0.5)
    assert teacher.vae.config.scaling_factor == 0.25
    assert GuidanceOptions().model_files == {"model_config": None, "vae": None, "loras": None}


@pytest.mark.parametrize("more", ["loras=[a.safetensors]", "vae=other", "model_config=other"])
def test_runs_with_other_files_have_models_of_their_own(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.generate.teachers.load_teacher", lambda config: object())
    teachers, plain = engine.Teachers(), load_config(None, [], "a red mug")
    other = load_config(None, [f"system.guidance.{more}"], "a red mug")
    assert teachers.load(plain) is teachers.load(plain)
    assert teachers.load(plain) is not teachers.load(other)


def test_a_run_with_other_files_is_no_query_of_attribution(tmp_path: Path) -> None:
    config = load_config(None, ["system.guidance.loras=[a.safetensors]"], "a red mug")
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    with pytest.raises(CarvError, match="was made with loras, and carv attribute knows models without them alone"):
        run_model(tmp_path)
