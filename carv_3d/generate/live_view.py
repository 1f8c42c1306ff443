"""A live view of a scene in the browser, by viser: turn it and zoom while it grows, pause it, see its curve.

The field is rendered between two steps, in the run's own thread, and without a random number: a run that is watched is
the run that it would be alone. The server is bound to 127.0.0.1 unless another address is given; whoever reaches it
sees the scene and may pause the run.
"""

from __future__ import annotations

import contextlib
import io
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carv_3d.config.request import ViewOptions
from carv_3d.errors import CarvError, first_line, require
from carv_3d.generate.config import load_run
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.images import to_uint8
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.names import CHECKPOINT
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.scenes.cameras import Cameras

REFRESH = 2.0  # seconds after which an image is rendered again where the camera stands still
ROWS = 160  # of an image
MOST_POINTS = 400  # of the curve
FLIP = np.array([1.0, -1.0, -1.0])  # viser's axes are right, down, forward


class LiveView:
    """The server, and what it shows of one scene."""

    def __init__(self, options: ViewOptions, title: str) -> None:
        """Begin to serve; CarvError where viser is not installed or the address cannot be had."""
        viser = require("viser", "view", "--view")
        host, port = options.view_address, options.view_port
        try:
            with socket.create_server((host, 0)):  # viser ends in a thread of its own where it cannot be bound
                pass
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a box
                self.server = viser.ViserServer(host=host, port=port, label="carv_3d", verbose=False)
        except (OSError, RuntimeError) as error:
            raise CarvError(
                f"the live view cannot be served at {host}:{port} ({first_line(error)}); give another --view-address "
                "or --view-port"
            ) from error
        gui = self.server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)  # that button would open a tunnel to the public
        self._words = gui.add_markdown(_quoted(title))
        self._pause = gui.add_checkbox("Pause", False)
        self._uplot = viser.uplot
        self._curve: Any = None
        self._points: deque[tuple[float, float]] = deque(maxlen=MOST_POINTS)
        self._shown: dict[int, tuple[float, float]] = {}  # client -> the camera's time stamp, when it was rendered
        self.title = title

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://{self.server.get_host()}:{self.server.get_port()}"

    def begin(self, host: TextTo3D) -> None:
        """Place the camera of new visitors where the first evaluation view is."""
        camera = host.orbit(1)
        first = self.server.initial_camera
        first.position, first.look_at = tuple(camera.position[0].tolist()), (0.0, 0.0, 0.0)
        first.fov = math.radians(float(camera.fovy[0]))

    def after_step(self, host: TextTo3D, row: Mapping[str, float], stopped: Callable[[], bool] = lambda: False) -> None:
        """Show the step, and wait while the run is paused.

        Args:
            host: whose field is shown.
            row: the step's figures.
            stopped: asked while it waits; once it is True, a pause ends.
        """
        draws = f", K = {row['K']:g}" if "K" in row else ""
        self._words.content = f"{_quoted(self.title)}\n\nstep {host.step} of {host.config.trainer.max_steps}{draws}"
        snr = row.get("snr_step", math.nan)
        if math.isfinite(snr):
            self._points.append((float(host.step), snr))
            self._draw_curve()
        self.show(host)
        while self._pause.value and not stopped():
            self.show(host)
            time.sleep(0.05)

    def show(self, host: TextTo3D) -> int:
        """Render for every visitor whose camera has moved, or whose image is old; returns how many."""
        rendered, clients = 0, self.server.get_clients()
        self._shown = {key: value for key, value in self._shown.items() if key in clients}
        for key, client in clients.items():
            stamp, now = float(client.camera.update_timestamp), time.monotonic()
            before = self._shown.get(key)
            if not stamp or (before is not None and before[0] == stamp and now - before[1] < REFRESH):
                continue  # without a stamp its camera is not known yet
            camera = from_viser(client.camera)
            width = max(1, min(3 * ROWS, round(ROWS * float(client.camera.aspect))))
            with torch.no_grad():
                image = to_uint8(host.views(camera.to(host.device), ROWS, width))[0]
            client.scene.set_background_image(image, format="jpeg")
            self._shown[key] = (stamp, time.monotonic())
            rendered += 1
        return rendered

    def _draw_curve(self) -> None:
        if len(self._points) < 2:
            return
        data = tuple(np.array(column) for column in zip(*self._points))
        if self._curve is None:
            series = (self._uplot.Series(label="step"), self._uplot.Series(label="SNR", stroke="#2f6f9f", width=2))
            title = "signal-to-noise ratio of the gradient"
            self._curve = self.server.gui.add_uplot(data, series, title=title, aspect=1.6)
        else:
            self._curve.data = data

    def close(self) -> None:
        """Stop serving."""
        self.server.stop()


def view_run(folder: Path, options: ViewOptions) -> int:
    """Serve the scene of a run that is there, until a signal ends it; returns 0.

    Raises:
        CarvError: there is no such run, or it has no checkpoint.
    """
    display = Display()
    config = load_run(folder)
    state, note = load_checkpoint(folder / CHECKPOINT)
    if note:
        display.say(note)
    live = LiveView(options, config.prompt)
    try:
        with display.status("loading the scene"):
            host = TextTo3D(config, log=lambda text: None)
            host.load_state_dict(state)
        live.begin(host)
        live.after_step(host, {})
        display.say(f"Look: {live.address} (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt), StopSignals(at_once=True):
            while True:
                live.show(host)
                time.sleep(0.05)
    finally:
        live.close()
    return 0


def from_viser(camera: Any) -> Cameras:
    """One camera of this package from viser's: wxyz (4,), position (3,), fov in radians."""
    from viser.transforms import SO3

    axes = SO3(np.asarray(camera.wxyz, dtype=np.float64)).as_matrix()
    position = np.asarray(camera.position, dtype=np.float64)
    c2w = torch.tensor(np.column_stack([axes * FLIP, position]), dtype=torch.float32)[None]
    distance = float(np.linalg.norm(position))
    elevation = math.degrees(math.asin(float(np.clip(position[2] / max(distance, 1e-9), -1, 1))))
    azimuth = math.degrees(math.atan2(position[1], position[0]))
    numbers = (elevation, azimuth, distance, math.degrees(float(camera.fov)))
    return Cameras(c2w, *(torch.tensor([number]) for number in numbers))


def _quoted(text: str) -> str:
    """A prompt as Markdown that shows it letter by letter."""
    plain = (letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
    return f"**{''.join(plain)}**"
