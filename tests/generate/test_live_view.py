"""The live view: what it renders, where it is bound, how it pauses; a run that is watched is the run alone."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM
from commands import loaded_by, refusal
from fake_ray import closed_port
from scipy.spatial.transform import Rotation
from tiny_host import TINY, tiny_config

from carv_3d.cli import main as cli
from carv_3d.config.request import ViewOptions
from carv_3d.errors import CarvError
from carv_3d.generate import live_view
from carv_3d.generate.live_view import LiveView, from_viser, view_run
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.images import to_uint8
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.scenes.cameras import Cameras


@pytest.fixture
def host(sd_folder: Path, sd_teacher: Any) -> TextTo3D:
    return TextTo3D(tiny_config(sd_folder), sd_teacher)


@pytest.fixture
def live() -> Iterator[LiveView]:
    view = LiveView(ViewOptions(view=True, view_port=closed_port()), "a <b>*red*</b> mug")
    yield view
    view.close()


class Visitor:
    """A client of viser's, looking from where a camera of this package does."""

    def __init__(self, camera: Cameras, stamp: float = 1.0) -> None:
        axes = camera.c2w[0, :, :3].double().numpy() * np.array([1, -1, -1])  # right, down, forward
        x, y, z, w = Rotation.from_matrix(axes).as_quat()
        self.camera = types.SimpleNamespace(
            wxyz=(w, x, y, z), position=camera.position[0].numpy(), fov=math.radians(float(camera.fovy[0])), aspect=1.5,
            update_timestamp=stamp,
        )  # fmt: skip
        self.images: list[np.ndarray] = []
        self.scene = types.SimpleNamespace(set_background_image=lambda image, format: self.images.append(image))


def test_a_camera_of_the_browser_is_the_camera_that_is_rendered(host: TextTo3D) -> None:
    for camera in (host.orbit(5)[i] for i in range(5)):
        read = from_viser(Visitor(camera).camera)
        torch.testing.assert_close(read.c2w, camera.c2w, atol=1e-4, rtol=1e-4)
        for name in ("elevation", "distance", "fovy"):
            torch.testing.assert_close(getattr(read, name), getattr(camera, name), atol=1e-3, rtol=1e-3)
        turn = (read.azimuth - camera.azimuth) % 360
        assert min(float(turn), 360 - float(turn)) < 1e-2


def test_a_visitor_is_shown_the_field_again_when_the_camera_moves_or_the_image_is_old(
    host: TextTo3D, live: LiveView, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = host.orbit(3)[1]
    here, unknown = Visitor(camera), Visitor(camera, stamp=0.0)
    monkeypatch.setattr(live.server, "get_clients", lambda: {0: here, 1: unknown})
    assert [live.show(host), live.show(host)] == [1, 0]
    assert here.images[0].shape == (live_view.ROWS, 240, 3)
    expected = to_uint8(host.views(from_viser(here.camera), live_view.ROWS, 240))[0]
    assert np.array_equal(here.images[0], expected)
    here.camera.update_timestamp = 2.0
    assert live.show(host) == 1
    monkeypatch.setattr(live_view, "REFRESH", 0.0)
    assert live.show(host) == 1
    assert unknown.images == []


def test_it_says_prompt_step_and_draws_and_draws_the_curve(host: TextTo3D, live: LiveView) -> None:
    for snr in (math.nan, 1.0, 2.0):
        host.step += 1
        live.after_step(host, {"K": 4.0, "snr_step": snr})
    words = live._words.content
    assert "step 3 of 4, K = 4" in words
    assert "<b>" not in words
    assert "*red*" not in words
    assert [column.tolist() for column in live._curve.data] == [[2.0, 3.0], [1.0, 2.0]]


def test_a_pause_ends_with_the_box_or_with_a_signal(host: TextTo3D, live: LiveView) -> None:
    live._pause.value = True
    answers = iter([False, False, True])
    live.after_step(host, {}, lambda: next(answers))
    assert next(answers, None) is None


def test_it_is_served_here_alone_and_an_address_of_another_machine_is_refused(live: LiveView) -> None:
    with urllib.request.urlopen(live.address, timeout=30) as page:
        assert page.status == 200
    assert live.address.startswith("http://127.0.0.1:")
    others = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}
    for other in others:
        with pytest.raises(OSError):  # noqa: PT011 (refused, or no way there)
            socket.create_connection((other, live.server.get_port()), timeout=2)
    with pytest.raises(CarvError, match=r"the live view cannot be served at 203\.0\.113\.1:8080"):
        LiveView(ViewOptions(view=True, view_address="203.0.113.1"), "x")


@pytest.fixture
def words(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that make a run tiny, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return ["generate", "a red mug", *TINY, f"system.guidance.pretrained_model_name_or_path={sd_folder}"]


def test_a_run_that_is_watched_is_the_run_alone(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    camera = Visitor(TextTo3D.orbit(types.SimpleNamespace(config=tiny_config(Path("x"))), 3)[1])  # type: ignore[arg-type]
    monkeypatch.setattr("viser.ViserServer.get_clients", lambda server: {0: camera})
    monkeypatch.setattr(live_view, "REFRESH", 0.0)
    assert cli.main([*words, "--out", "watched", "--view", "--view-port", str(closed_port())]) == 0
    assert "Look: http://127.0.0.1:" in capsys.readouterr().out
    assert len(camera.images) == 4
    assert cli.main([*words, "--out", "alone"]) == 0
    watched, alone = (load_checkpoint(Path(name) / "checkpoint")[0] for name in ("watched", "alone"))
    assert torch.equal(watched["field"]["grid"], alone["field"]["grid"])
    assert watched["rng"].keys() == alone["rng"].keys()

    monkeypatch.setattr(live_view.LiveView, "show", lambda live, host: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(live_view.LiveView, "after_step", lambda live, host, row: None)
    assert view_run(Path("alone"), ViewOptions(view_port=closed_port())) == 0
    out, err = capsys.readouterr()
    assert "(Ctrl-C ends it)" in out
    assert "Stopping after this step" not in err


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["generate", "a red mug", "--view-port", "9000"], "--view-address and --view-port are of the live view"),
        (["generate", "a red mug", "--view", "--dry-run"], "--view shows one run while it trains"),
        (["generate", "--prompts", "x.txt", "--view"], "--view shows one run while it trains"),
        (["view"], "the run is missing; name its folder"),
        (["view", "nowhere"], "nowhere"),
        (["view", "/dev/null"], "/dev/null is no folder of a run; name one, such as outputs/a-red-mug-0"),
        (["view", "run/asset.glb"], "run/asset.glb is a file; name the folder of a run that it belongs to"),
    ],
)
def test_mistakes_are_one_sentence(
    given: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/asset.glb").write_bytes(b"glTF")
    assert sentence in refusal(capsys, *given)


def test_without_a_view_viser_is_not_loaded() -> None:
    assert loaded_by("import carv_3d.generate.run, carv_3d.cli.view", "viser") == set()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_chromium_sees_the_first_view(host: TextTo3D, live: LiveView, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    live.begin(host)
    flags = ["--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking"]
    child = subprocess.Popen([CHROMIUM, *flags, f"--user-data-dir={tmp_path}", live.address], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not live.show(host):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (client,) = live.server.get_clients().values()
        read = from_viser(client.camera)
        torch.testing.assert_close(read.position, host.orbit(1).position, atol=1e-2, rtol=1e-2)
    finally:
        child.kill()
        child.wait()
