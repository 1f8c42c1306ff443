"""`carv doctor MODEL`: what is understood of each family's folder, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
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
