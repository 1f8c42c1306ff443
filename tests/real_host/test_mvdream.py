"""MVDream's guidance inside a real threestudio, with the real package's network at a tiny size: gradients, training.

They are collected only where CARV_THREESTUDIO_MVDREAM names a checkout of threestudio-mvdream and CARV_MVDREAM one of
the package.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mvdream_tiny
import pytest
import recorded_mvdream as mvdream
import recorded_parity as recorded
import torch
from cpu_host import EXTENSION

from carv_3d.teachers.mvdream import side_by_side


@pytest.fixture(scope="module")
def weights(threestudio: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return mvdream_tiny.write(tmp_path_factory.mktemp("mvdream"))


@pytest.mark.parametrize("recon_loss", [True, False])
def test_one_draw_gives_the_stock_gradient(
    recon_loss: bool, threestudio: Any, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvdream_tiny.load_stock(threestudio)
    cfg = {"ckpt_path": weights, "image_size": 16, "recon_loss": recon_loss}
    stock = threestudio.find(mvdream.KIND)(cfg)
    stock.alphas_cumprod = stock.model.alphas_cumprod  # which it reads and does not have
    ours = threestudio.find(f"carv-{mvdream.KIND}")({**cfg, **recorded.ONE_DRAW})
    n, rgb = 8, mvdream.render("images", 8)
    batch = {**mvdream.batch("images", n), "text_embeddings": recorded.fill("text", 2 * n, 5, 16)}
    eps, posterior = mvdream.noise(n)
    recorded.deal(ours._carv.estimator, torch.full((2, 1), 321), side_by_side(eps, 4)[:, None])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([321]))
    monkeypatch.setattr(torch, "randn_like", lambda *_, **__: eps)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: posterior)
    expected = stock(rgb, mvdream.Prompts(), **{**batch, "c2w": batch["c2w"].clone()})
    monkeypatch.setattr(torch, "randn", lambda *_, **__: side_by_side(posterior, 4))
    actual = ours(rgb, mvdream.Prompts(), **batch)
    a, b = (torch.autograd.grad(out["loss_sds"], rgb)[0] for out in (expected, actual))
    assert float(a.norm()) > 0
    assert float((a - b).norm() / a.norm()) < 1e-4


RUN = """
import sys, runpy, mvdream_tiny
mvdream_tiny.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], None, "__main__")
"""


def test_the_shipped_configuration_trains(checkout: Path, weights: str, sd_folder_512: Path, tmp_path: Path) -> None:
    script, file = Path(__file__).with_name("cpu_host.py"), EXTENSION / "configs" / "carv-mvdream.yaml"
    mvdream_tiny.link(tmp_path / "run")
    given = [f"system.guidance.ckpt_path={weights}", "system.guidance.image_size=16"]
    given += [f"system.prompt_processor.pretrained_model_name_or_path={sd_folder_512}", "data.batch_size=8"]
    given += ["system.prompt_processor.negative_prompt=bad"]  # the tiny tokenizer reads letters
    given += ["data.resolution_milestones=[]", "system.background.dir_encoding_config.n_frequencies=3"]
    given += ["system.background.dir_encoding_config.otype=ProgressiveBandFrequency"]
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    words = [script, checkout, file, 3, tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for i, record in enumerate(steps, start=1):
        logged = record["logged"]
        assert math.isfinite(logged["loss_sds"])
        assert (logged["K"], logged["renders"], logged["nfe"]) == (4, 8 * i, 2 * 4 * 2 * i)
    assert {record["guidance"] for record in steps} == {"CarvMVDreamGuidance"}
