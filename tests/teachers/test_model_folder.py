"""Model folders that are not as they should be: what each gives, before any weights are read where that can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from carv_3d.distill.export import save_one_step
from carv_3d.errors import CarvError
from carv_3d.teachers.availability import needed_files, resolve_model
from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.model_folder import weight_files

UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, TOKENIZER = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture
def copy(sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


def refusal(folder: Path, work: Callable[[str], Any] = resolve_model) -> str:
    """The sentence, which names the folder."""
    with pytest.raises(CarvError) as caught:
        work(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "key", "values", "due"),
    [
        (UNET, "sample_size", [None, "8", {}, 0, -1, 8.5, 1e308, float("nan"), True], "a whole number from 1 to 4096"),
        (UNET, "cross_attention_dim", ["8", [8], None, 0, 1e308], "a whole number from 1 to 65,536"),
        (
            VAE,
            "scaling_factor",
            [float("nan"), float("inf"), 0, -1, "a", [1], 1e308],
            "a number from 1e-06 to 1,000,000",
        ),
        (VAE, "block_out_channels", ["8", {}, None, [8, "a"]], "a list of numbers"),
        (VAE, "latent_channels", ["4"], "a whole number from 1 to 4096"),
        (TEXT, "num_hidden_layers", [-1, "a", 1e308], "a whole number from 1 to 1000"),
        (SCHEDULER, "beta_end", [float("nan"), 0, "a"], "a number above 0 and of at most 1"),
        (SCHEDULER, "num_train_timesteps", [10**9, 0], "a whole number from 1 to 1,000,000"),
        (SCHEDULER, "trained_betas", ["x", ["a"], [float("nan")]], "a list of numbers from 0 to 1"),
        (SCHEDULER, "prediction_type", ["foo", None, 3, ["epsilon"]], "one of epsilon, sample, v_prediction"),
        (TOKENIZER, "model_max_length", ["x", 0], "a whole number from 3 to 1e+31"),
    ],
)
def test_a_value_is_refused_with_its_key_and_what_is_due(
    file: str, key: str, values: list[Any], due: str, copy: Path
) -> None:
    before = (copy / file).read_text()
    for value in values:
        edit(copy / file, **{key: value})
        words = refusal(copy)
        assert f"{file}: {key} is {value!r}; it must be {due}" in words
        (copy / file).write_text(before)


def test_a_scaling_factor_of_null_is_the_default_of_diffusers(copy: Path) -> None:
    edit(copy / VAE, scaling_factor=None)
    assert load_teacher(str(copy), device="cpu")._scaling == 0.18215


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FlowMatchEulerDiscreteScheduler", "prediction_type is 'epsilon'; it must be flow_prediction"),
        ("EDMEulerScheduler", "they add other noise"),
    ],
)
@pytest.mark.parametrize("place", ["scheduler", "index"])
def test_flow_matching_and_edm_are_never_read_as_betas(name: str, said: str, place: str, copy: Path) -> None:
    if place == "index":
        edit(copy / "model_index.json", scheduler=["diffusers", name])
    else:
        edit(copy / SCHEDULER, _class_name=name)
    with pytest.raises(CarvError, match=said):
        resolve_model(str(copy))


def test_noise_alone_at_the_last_step_cannot_be_predicted_as_epsilon(copy: Path) -> None:
    edit(copy / SCHEDULER, rescale_betas_zero_snr=True)
    assert "predicts epsilon and its schedule ends in noise alone" in refusal(copy)
    edit(copy / SCHEDULER, prediction_type="v_prediction")
    assert resolve_model(str(copy)) == copy


@pytest.mark.parametrize(
    ("config", "family", "kind"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow", "flow_prediction"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "edm", "edm"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "v_prediction"}, "edm", "edm_v"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "sample"}, "vp", "sample"),
    ],
)
def test_a_network_of_any_schedule_predicts_noise(config: Any, family: str, kind: str, copy: Path) -> None:
    (copy / SCHEDULER).write_text(json.dumps(config))
    edit(copy / "model_index.json", scheduler=["diffusers", config["_class_name"]])
    teacher = load_teacher(str(copy), device="cpu")
    assert (teacher.schedule.family, teacher.prediction_type) == (family, kind)
    g = torch.Generator().manual_seed(0)
    size, text = teacher.latent_size, teacher.text_embeddings(["a mug"] * 2)
    z, eps = (torch.randn(2, teacher.latent_channels, size, size, generator=g) for _ in range(2))
    t = torch.tensor([300, 700])
    z_t = teacher.schedule.add_noise(z, eps, t)
    given, times = z_t, t
    if family == "edm":
        sigma = teacher.schedule.sigma(t)
        given, times = z_t / (sigma**2 + 0.25).sqrt().view(2, 1, 1, 1), sigma.log() / 4
    elif family == "flow":
        times = 1000 * teacher.schedule.sigma(t)
    output = teacher.unet(given, times, text).sample
    expected = teacher.schedule.eps_from(kind, z_t, output, t)
    torch.testing.assert_close(teacher.eps_hat(z_t, t, text), expected)


@pytest.mark.parametrize("name", ["FooScheduler", "IPNDMScheduler", 3, ["DDIMScheduler"]])
def test_a_scheduler_that_is_not_known_is_never_read_as_another(name: Any, copy: Path) -> None:
    edit(copy / SCHEDULER, _class_name=name)
    assert f"{SCHEDULER}: _class_name is {name!r}, a scheduler whose noise is not known" in refusal(copy)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_schedulers_of_betas_are_taken(name: str, copy: Path) -> None:
    edit(copy / SCHEDULER, _class_name=name)
    assert resolve_model(str(copy)) == copy


def in_half_alone(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()


def test_weights_in_half_precision_alone_are_loaded(copy: Path, sd_teacher: Any, tmp_path: Path) -> None:
    in_half_alone(copy)
    teacher = load_teacher(str(copy), device="cpu")
    assert teacher.dtype == torch.float32
    saved = [dict(model.unet.named_parameters()) for model in (teacher, sd_teacher)]
    assert all(torch.equal(saved[0][key], value.half().float()) for key, value in saved[1].items())
    save_one_step(tmp_path / "generator", copy, teacher.unet)
    assert [f.name for f in weight_files(tmp_path / "generator", "vae")] == ["diffusion_pytorch_model.safetensors"]


def test_the_plain_copy_comes_before_half_precision(copy: Path) -> None:
    plain = copy / WEIGHTS
    shutil.copyfile(plain, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert weight_files(copy, "unet") == [plain]
    listing = ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.non_ema.safetensors"]
    assert needed_files(listing) == listing[:1]
    assert needed_files([*listing, "vae/diffusion_pytorch_model.bin"]) == ["vae/diffusion_pytorch_model.bin"]


def test_the_outer_folder_of_a_hubs_cache_names_the_one_within(sd_folder: Path, tmp_path: Path) -> None:
    outer = tmp_path / "models--o--n"
    shutil.copytree(sd_folder, outer / "snapshots" / "abc")
    assert f"name the model's folder in snapshots/, {outer}/snapshots/abc" in refusal(outer)
    assert resolve_model(str(outer / "snapshots" / "abc")).name == "abc"


def test_a_generator_of_one_step_is_no_teacher(sd_folder: Path, sd_teacher: Any, tmp_path: Path) -> None:
    save_one_step(tmp_path / "generator", sd_folder, sd_teacher.unet)
    assert "is a generator of one step, no teacher" in refusal(tmp_path / "generator", load_teacher)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_are_not_finite_are_refused(file: str, value: float, copy: Path) -> None:
    tensors = load_file(copy / file)
    key = max(tensors)
    tensors[key].view(-1)[-1] = value
    save_file(tensors, copy / file, metadata={"format": "pt"})
    words = refusal(copy, lambda name: load_teacher(name, device="cpu"))
    assert f"{file}: " in words
    assert "holds 1 numbers that are NaN or infinite" in words


def test_a_sum_that_overflows_is_no_infinity(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    tensors[max(tensors)].view(-1)[:2] = 3e38
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    load_teacher(str(copy), device="cpu")


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS: dict[str, tuple[bytes | Any, int | None, str]] = {
    "a length beyond the file": (b"{}", 2**63, "is cut off at"),
    "a length beyond the tensors": ({"a": {**ENTRY, "data_offsets": [0, 10**6]}}, None, "bytes of 10000"),
    "a list": ([1], None, "does not hold a JSON object"),
    "empty": (b"", None, "is not readable JSON"),
    "deep": (b"[" * 10_000, None, "nested too deeply"),
    "digits": (b'{"a":' + b"7" * 5000 + b"}", None, "an integer of 5000 digits"),
    "twice": (b'{"a":1,"a":2}', None, "the key 'a' is there twice"),
    "UTF-16": ("{}".encode("utf-16"), None, "is not text in UTF-8"),
    "texts": ({"a": {**ENTRY, "data_offsets": ["0", "4"]}}, None, "'a' in the header of"),
    "below 0": ({"a": {**ENTRY, "data_offsets": [-4, 0]}}, None, "'a' in the header of"),
    "infinite": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e308]}}', None, "'a' in the header of"),
    "a shape of text": ({"a": {**ENTRY, "shape": "x"}}, None, "'a' in the header of"),
    "no entry": ({"a": [1, 2]}, None, "'a' in the header of"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_none_is_named(case: str, copy: Path) -> None:
    header, length, why = HEADERS[case]
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    (copy / WEIGHTS).write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + b"\0" * 2000)
    words = refusal(copy)
    assert WEIGHTS in words
    assert why in words


@pytest.mark.parametrize("shards", [[1], {"a": 3}, {}, None, 3, {"a": "../../x"}, {"a": "/etc/passwd"}])
def test_an_index_of_shards_names_files_next_to_it(shards: Any, copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert f"{INDEX}: its weight_map must name a file next to it for each tensor" in refusal(copy)


@pytest.mark.parametrize("file", ["model_index.json", UNET, VAE, TEXT, SCHEDULER, TOKENIZER, "tokenizer/vocab.json"])
def test_every_small_file_goes_through_one_reader(file: str, copy: Path) -> None:
    for text in ("[]", "null", "", '{"a": 1, "a": 2}', "[" * 10_000, '{"a": ' + "7" * 5000 + "}", '{"a": 1'):
        (copy / file).write_text(text)
        assert "JSON" in refusal(copy)
    (copy / file).write_bytes('{"a": 1}'.encode("utf-16"))
    assert "is not text in UTF-8" in refusal(copy)
    assert file in refusal(copy)


@pytest.mark.parametrize("words", [{"a": "b"}, {"a": 10**30}, {"a": -1}, {"a": 514}, {"a": 1.5}, {"a": True}])
def test_a_word_has_a_number_that_the_text_encoder_knows(words: dict[str, Any], copy: Path) -> None:
    (copy / "tokenizer/vocab.json").write_text(json.dumps(words))
    assert "tokenizer/vocab.json: the word 'a' has" in refusal(copy)


@pytest.mark.parametrize("name", ["pad_token", "bos_token", "eos_token"])
def test_a_special_word_has_a_number_that_the_text_encoder_knows(name: str, copy: Path) -> None:
    settings = json.loads((copy / TOKENIZER).read_text())
    (copy / TOKENIZER).write_text(json.dumps(settings | {name: "/dev/zero"}))
    said = refusal(copy, lambda path: load_teacher(path, device="cpu"))
    assert re.search(r"the special word '/dev/zero' with the number \d+, and its text encoder knows 514 words", said)


def test_a_tokenizer_without_its_special_words_is_named(copy: Path) -> None:
    (copy / "tokenizer/vocab.json").write_text('{"a</w>": 1}')
    (copy / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    assert "the tokenizer of" in refusal(copy, lambda name: load_teacher(name, device="cpu"))


@pytest.mark.parametrize("file", ["model_index.json", UNET, WEIGHTS, "tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_what_is_no_regular_file_is_never_opened(file: str, copy: Path) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "is a pipe": os.mkfifo,
        "is a folder": Path.mkdir,
        "is a device": lambda path: path.symlink_to("/dev/zero"),
        "Too many levels of symbolic links": lambda path: path.symlink_to(path.name),
        "is missing": lambda path: path.symlink_to("nowhere"),
    }
    (copy / file).unlink()
    for words, make in makers.items():
        make(copy / file)
        assert words in refusal(copy)
        assert file in refusal(copy)
        (copy / file).rmdir() if words == "is a folder" else (copy / file).unlink()


@pytest.mark.parametrize("content", [b"xx", {}, [1]])
def test_weights_of_torch_that_are_none_are_named(content: Any, copy: Path) -> None:
    file = (copy / WEIGHTS).with_suffix(".bin")
    (copy / WEIGHTS).unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    assert str(file) in refusal(copy, lambda name: load_teacher(name, device="cpu"))
