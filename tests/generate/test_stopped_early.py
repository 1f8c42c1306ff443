"""A signal before the first step of `carv generate`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from carv_3d.cli import main as cli
from carv_3d.generate import run


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_model_is_loaded_is_said_and_the_folder_can_be_taken_again(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loads(config: Any, log: Any) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("it continues")

    monkeypatch.setattr(run, "TextTo3D", loads)
    out = tmp_path / "run"
    for _ in range(2):
        assert cli.main(["generate", "a red mug", "--out", str(out)]) == 128 + number
        said = "Interrupted while the model was loaded; nothing was computed: give the same command again."
        assert said in capsys.readouterr().out
        assert not out.exists()
