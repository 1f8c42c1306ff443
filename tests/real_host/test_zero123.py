"""The Zero123 guidances inside a real threestudio, with its own network at a tiny size: gradients, and training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ldm_tiny
import pytest
import record_zero123
import recorded_parity as recorded
import torch
from compvis_models import write_image
from cpu_host import EXTENSION
from zero123_models import write_zero123_folder


@pytest.fixture(scope="module")
def files(threestudio: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ldm_tiny.install()
    return ldm_tiny.write(tmp_path_factory.mktemp("ldm"))


@pytest.mark.parametrize("kind", ["zero123-guidance", "stable-zero123-guidance"])
def test_one_draw_gives_the_stock_gradient(
    kind: str, threestudio: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_class = threestudio.find(kind)
    record_zero123.shrink(sys.modules[stock_class.__module__])
    stock = stock_class(files)
    ours = threestudio.find(f"carv-{kind}")({**files, **recorded.ONE_DRAW})
    rgb = recorded.render("images")
    posterior, eps = (recorded.gaussian(name, 2, 4, 8, 8) for name in ("posterior", "eps"))
    t = torch.tensor([150, 700])
    recorded.deal(ours._carv.estimator, t[:, None], eps[:, None])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: posterior)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: t)
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: eps)
    expected, actual = (guidance(rgb, **recorded.views(2)) for guidance in (stock, ours))
    a, b = (torch.autograd.grad(out["loss_sds"], rgb)[0] for out in (expected, actual))
    assert float(a.norm()) > 0
    assert float((a - b).norm() / a.norm()) < 1e-4
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"].item(), rel=1e-4)


RUN = """
import sys, runpy, ldm_tiny
ldm_tiny.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], None, "__main__")
"""
OWN = {"carv-zero123": "CarvZero123Guidance", "carv-stable-zero123": "CarvStableZero123Guidance"}


@pytest.mark.parametrize("config", OWN)
def test_a_shipped_configuration_trains(config: str, checkout: Path, files: dict[str, str], tmp_path: Path) -> None:
    script, file = Path(__file__).with_name("cpu_host.py"), EXTENSION / "configs" / f"{config}.yaml"
    given = [f"system.guidance.{name}={path}" for name, path in files.items() if name != "cond_image_path"]
    given += [f"data.image_path={files['cond_image_path']}", "trainer.val_check_interval=3"]
    given += ["system.freq.guidance_eval=3"]
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, (script, checkout, file, 3, tmp_path / "run")), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert {record["guidance"] for record in steps} == {OWN[config]}
    assert all(math.isfinite(record["logged"]["loss_zero123_sds"]) for record in steps)
    assert list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.parametrize("kind", ["sds", "vsd"])
def test_the_unified_guidance_trains(kind: str, checkout: Path, tmp_path: Path) -> None:
    """threestudio's own configuration, with the guidance replaced."""
    model = write_zero123_folder(tmp_path / "model")
    write_image(tmp_path / "image_rgba.png")
    script, file = Path(__file__).with_name("cpu_host.py"), checkout / "configs/experimental/unified-guidance"
    given = ["system.guidance_type=carv-zero123-unified-guidance", f"system.guidance.guidance_type={kind}"]
    given += [f"system.guidance.pretrained_model_name_or_path={model}", f"data.image_path={tmp_path}/image_rgba.png"]
    given += ["system.optimizer.params.guidance.lr=0.0001", "system.loss.lambda_train_phi=1."] if kind == "vsd" else []
    words = [script, checkout, file / "zero123-simple.yaml", 3, tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, *map(str, words), *given], env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [record["step"] for record in steps] == [1, 2, 3]
    losses = {"loss_sd", "loss_train_phi"} if kind == "vsd" else {"loss_sd"}
    assert all(math.isfinite(record["logged"][name]) for record in steps for name in losses)
