"""A headless Chromium that shows pages of this package, by its own protocol (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--hide-scrollbars", "--enable-unsafe-swiftshader", "--remote-debugging-port=0",
)  # fmt: skip
TROUBLE = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Protocol:
    """Commands to a browser, and what its console said meanwhile."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number, self.trouble = socket, 0, list[str]()

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """What the browser answers."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": given}))
        while True:
            said = json.loads(self.socket.recv(timeout=100))
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]
            if said.get("method") in TROUBLE:
                self._note(said["params"])

    def _note(self, entry: dict[str, Any]) -> None:
        level = entry.get("entry", {}).get("level", entry.get("type", "exception"))
        if level in ("error", "exception", "assert"):
            self.trouble.append(json.dumps(entry)[:600])


class Page(Protocol):
    """The one tab of a browser.

    Attributes:
        trouble: errors of its console since the last `open`.
    """

    def __init__(self, socket: Any) -> None:
        super().__init__(socket)
        for name in ("Runtime", "Log", "Page"):
            self.call(f"{name}.enable")

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Show the file in a window of this size, light or dark, and wait until it is there."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.trouble.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def ask(self, code: str) -> Any:
        """The value of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, code: str, seconds: float = 60.0) -> None:
        """Wait until JavaScript says true."""
        deadline = time.monotonic() + seconds
        while self.ask(code) is not True:
            assert time.monotonic() < deadline, code
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key, to whatever has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=39)

    def screenshot(self) -> np.ndarray:
        """(H, W, 3) uint8, of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with a profile of its own in `folder`."""
    from websockets.sync.client import connect

    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, deadline = folder / "DevToolsActivePort", time.monotonic() + 100
        while not port.exists() or len(port.read_text().split()) < 2:
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        number, path = port.read_text().split()
        address = f"ws://127.0.0.1:{number}"
        with connect(f"{address}{path}", max_size=None, proxy=None) as socket:
            targets = Protocol(socket).call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        with connect(f"{address}/devtools/page/{tab}", max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()
