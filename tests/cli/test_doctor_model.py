"""`carv doctor MODEL`: what is understood of each family's folder, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from small_families import build_family

from carv_3d.cli import doctor_model
from carv_3d.cli import main as cli
from carv_3d.cli.doctor_model import examine
from carv_3d.errors import CarvError
from carv_3d.teachers import load


def test_carv_tiny_is_read_and_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "carv-tiny"]) == 0
    shown = capsys.readouterr().out
    for words in ("Stable Diffusion 1.x or 2.x in", "vp, 1000 timesteps", "unet F16", "self-test", "Ready. Try: carv"):
        assert words in shown
    assert re.search(r"ok +self-test +its error in the noise is \d+ %, \d+ %, \d+ % of that", shown)
    assert re.search(r"ok +memory +about [1-9]\d* ?\.\d MiB at K = 1", shown)


def test_a_flux_folder_is_read_and_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_family("FLUX.1", tmp_path / "model")
    lines = {f.name: f for f in examine(str(folder), num_draws=2)}
    assert lines["model"].detail == f"FLUX.1 in {folder}"
    assert lines["schedule"].detail == "flow, 1000 timesteps"
    assert lines["prediction"].detail == "flow_prediction"
    assert lines["VAE"].detail == "4 channels, scaling_factor 0.36, shift_factor 0.12"
    assert "transformer F32" in lines["on disk"].detail
    assert re.search(r"error in the noise is \d+ %", lines["self-test"].detail)
    more, half = (examine(str(folder), *given)[5].detail for given in ((200_000,), (200_000, "half")))
    gib = [float(re.search(r"about ([\d.]+) GiB", words)[1]) for words in (more, half)]  # type: ignore[index]
    assert gib[0] > 1
    assert gib[0] == pytest.approx(2 * gib[1], abs=0.1)
    monkeypatch.setattr(doctor_model, "_on_disk", lambda *_: (2**30, "F32"))  # of each of four parts
    assert [examine(str(folder), 1, kind)[5].detail[:14] for kind in ("float32", "half")] == [
        "about 16.0 GiB", "about 8.0 GiB ",
    ]  # fmt: skip


def test_a_model_of_pixels_is_read_and_tried_and_is_sought_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sought, find_model = build_family("DeepFloyd IF", tmp_path / "model"), [], load.find_model
    monkeypatch.setattr(load, "find_model", lambda *a, **more: sought.append(a) or find_model(*a, **more))
    lines = {f.name: f for f in examine(str(folder))}
    assert len(sought) == 1
    assert lines["model"].detail == f"DeepFloyd IF, stage I in {folder}"
    assert lines["VAE"].detail == "none: the latents are pixels in [-1, 1]"
    assert re.search(r"error in the noise is \d+ %", lines["self-test"].detail)


def test_what_is_refused_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert cli.main(["doctor", str(tmp_path / "model")]) == 1
    shown = capsys.readouterr().out
    assert "MISSING  model  refused: the diffusion model cannot be used" in shown
    assert "Not ready: model." in shown
    assert cli.main(["doctor", "carv-tiny", "other"]) == 2
    assert cli.main(["doctor", "carv-tiny", "--num-draws", "0"]) == 2


def test_doctor_takes_no_option() -> None:
    with pytest.raises(CarvError, match="a=b is of a model, and none is named"):
        cli._dispatch(["doctor", "a=b"])
    for words in (["--num-draws", "0"], ["--num-draws", "4", "--threestudio", "x"]):
        with pytest.raises(CarvError, match="--num-draws is of a model, and none is named"):
            cli._dispatch(["doctor", *words])
    with pytest.raises(CarvError, match="--precision is of a model"):
        cli._dispatch(["doctor", "--precision", "half"])


@pytest.mark.parametrize(
    ("family", "file", "values", "said"),
    [
        ("Stable Diffusion 1, 2", "unet", {"block_out_channels": []}, "its block_out_channels are none"),
        ("DeepFloyd IF", "unet", {"sample_size": None}, "it must be a whole number from 1 to 4096"),
        ("DeepFloyd IF", "unet", {"sample_size": ...}, "it names no sample_size, the side of its images"),
        (
            "Stable Diffusion 3", "text_encoder_3", {"d_model": 48},
            "joint_attention_dim is 40, and the text of text_encoder_3 is 48 wide: they do not fit",
        ),
        (
            "Stable Diffusion 3", "text_encoder_2", {"projection_dim": 8},
            "pooled_projection_dim is 24, and the text of text_encoder and text_encoder_2 is 20 wide",
        ),
        ("FLUX.1", "text_encoder", {"hidden_size": 24}, "pooled_projection_dim is 16, and the text of text_encoder"),
        ("PixArt-sigma", "text_encoder", {"d_model": 8}, "caption_channels is 40, and the text of text_encoder is"),
        ("SANA", "text_encoder", {"hidden_size": 8}, "caption_channels is 40, and the text of text_encoder is 8 wide"),
        ("DeepFloyd IF", "text_encoder", {"d_model": 8}, "encoder_hid_dim is 40, and the text of text_encoder is"),
        ("Stable Diffusion 1, 2", "unet", {"sample_size": [8, 16]}, "is not square (sample_size [8, 16])."),
        ("Stable Diffusion 3", "transformer", {"num_attention_heads": ..., "attention_head_dim": ...}, "cannot be loa"),
    ],
)  # fmt: skip
def test_an_odd_folder_is_one_sentence(
    family: str, file: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = build_family(family, tmp_path / "model")
    config = folder / file / "config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if values.get(key) is not ...}
    config.write_text(json.dumps({**kept, **{key: value for key, value in values.items() if value is not ...}}))
    finding = examine(str(folder))[-1]
    assert finding.needed
    assert not finding.found
    assert said in finding.detail
    assert "\n" not in finding.detail


def test_one_file_of_integers_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    file = write_single_file(sd_folder, tmp_path / "model.safetensors")
    save_file({key: value.to(torch.int8) for key, value in load_file(file).items()}, file)
    (finding,) = examine(str(file), model_config=str(sd_folder))
    assert "of type I8, so its weights were quantised, and no such file is read: take one in whole" in finding.detail
