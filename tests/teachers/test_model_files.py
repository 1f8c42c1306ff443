"""Models as people have them: one file, another VAE; and how the options reach them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import vae_tensors, write_single_file
from small_models import as_v_prediction

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

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


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


V2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"  # 1024 wide in Stable Diffusion 2


def test_a_file_of_stable_diffusion_2_needs_a_configuration(sd_folder: Path, tmp_path: Path) -> None:
    """It does not say whether it predicts noise or v, so nothing is taken for granted."""
    file = write_single_file(sd_folder, tmp_path / "model.safetensors", open_clip=True, **{V2: torch.zeros(1, 1024)})
    with pytest.raises(CarvError, match=r"of Stable Diffusion 2, and it does not say whether it predicts v .*_config"):
        find_model(str(file))
    whole = load_teacher(str(sd_folder), device="cpu")
    for kind in ("epsilon", "v_prediction"):
        config = as_v_prediction(sd_folder, tmp_path / kind) if kind == "v_prediction" else sd_folder
        teacher = load_teacher(str(file), device="cpu", model_config=str(config))
        assert teacher.prediction_type == kind
        torch.testing.assert_close(teacher.text_embeddings(["mug"]), whole.text_embeddings(["mug"]))
        expected = whole.unet.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in teacher.unet.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said", "right"),
    [
        ("v_pred", "so it predicts v, and", {"prediction_type": "v_prediction"}),
        ("ztsnr", "trained to zero terminal SNR", {"prediction_type": "sample", "rescale_betas_zero_snr": True}),
        ("edm_mean", "so it was trained with EDM", {"_class_name": "EDMEulerScheduler"}),
        (
            "edm_vpred.sigma_max",
            "predicts EDM's v",
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_predict"},
        ),
    ],
)
def test_what_a_file_says_of_itself_must_be_in_its_configuration(
    name: str, said: str, right: dict[str, Any], sd_folder: Path, tmp_path: Path
) -> None:
    file = write_single_file(sd_folder, tmp_path / "model.safetensors", **{name: torch.zeros(1)})
    with pytest.raises(CarvError, match=rf"holds {name}, .*{said}.* says otherwise: name a local diffusers folder"):
        find_model(str(file), model_config=str(sd_folder))
    config = shutil.copytree(sd_folder, tmp_path / "config")
    scheduler = config / "scheduler" / "scheduler_config.json"
    right = {key: "v_prediction" if value == "v_predict" else value for key, value in right.items()}
    before = {} if "_class_name" in right else json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**before, **right}))
    if "_class_name" in right:
        index = config / "model_index.json"
        index.write_text(
            json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", right["_class_name"]]})
        )
    assert find_model(str(file), model_config=str(config))[0] == config


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


@pytest.mark.parametrize("names", ["first_stage_model.", "", "diffusers"])
def test_another_vae_may_be_one_file(names: str, sd_folder: Path, other_vae: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").symlink_to(other_vae)
    file = tmp_path / "vae-ft.safetensors"
    if names == "diffusers":
        shutil.copy(other_vae / "diffusion_pytorch_model.safetensors", file)
    else:
        save_file({key: value.contiguous() for key, value in vae_tensors(tmp_path, names).items()}, file)
    teacher = load_teacher(str(sd_folder), device="cpu", vae=str(file))
    expected = load_file(other_vae / "diffusion_pytorch_model.safetensors")
    actual = teacher.vae.state_dict()
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert teacher.vae.config.scaling_factor == 0.5  # the model's own: a file has none


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file, weights: file.rename(file.with_suffix(".pt")), "is no .safetensors file, and of files these"),
        (lambda file, weights: save_file({"a": torch.ones(1)}, file), "does not fit the VAE's configuration in"),
        (lambda file, weights: save_file({k: v[:1] for k, v in weights.items()}, file), "does not fit the VAE's conf"),
        (lambda file, weights: save_file({k: v / 0 for k, v in weights.items()}, file), "NaN or infinite"),
        (lambda file, weights: file.write_bytes(file.read_bytes()[:-9]), "is cut off"),
    ],
)
def test_a_vae_of_one_file_that_does_not_fit_is_one_sentence(
    change: Any, said: str, sd_folder: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(sd_folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "v.safetensors"))
    change(file, load_file(file))
    (name,) = tmp_path.iterdir()
    with pytest.raises(CarvError) as caught:
        load_teacher(str(sd_folder), device="cpu", vae=str(name))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


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


# --- as options


def test_options_reach_the_model(sd_folder: Path, one_file: Path, other_vae: Path, tmp_path: Path) -> None:
    lora = tmp_path / "a.safetensors"
    pair = {"A": torch.ones(1, 16), "B": torch.ones(16, 1)}
    save_file({f"unet.{LAYER}.to_q.lora_{side}.weight": value for side, value in pair.items()}, lora)
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
