"""MVDream's guidance inside a real threestudio, with the real package's network at a tiny size: gradients, training.

They are collected only where CARV_THREESTUDIO_MVDREAM names a checkout of threestudio-mvdream and CARV_MVDREAM one of
the package.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import recorded_mvdream as mvdream
import recorded_parity as recorded
import torch
import yaml
from cpu_host import EXTENSION
from ldm_tiny import AUTOENCODER
from mvdream_models import NAME

from carv_3d.teachers.mvdream import side_by_side

STOCK, PACKAGE = (Path(os.environ[f"CARV_{name}"]).resolve() for name in ("THREESTUDIO_MVDREAM", "MVDREAM"))
MODULES = "mvdream.ldm.modules.diffusionmodules.openaimodel"
CONFIG: dict[str, Any] = {
    "target": "mvdream.ldm.interface.LatentDiffusionInterface",
    "params": {
        "linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000, "scale_factor": 0.18215,
        "unet_config": {
            "target": f"{MODULES}.MultiViewUNetModel",
            "params": {
                "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
                "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16,
                "use_spatial_transformer": True, "use_linear_in_transformer": True, "transformer_depth": 1,
                "context_dim": 16, "use_checkpoint": False, "legacy": False, "camera_dim": 16,
            },
        },
        "first_stage_config": {
            "target": "mvdream.ldm.models.autoencoder.AutoencoderKL",
            "params": AUTOENCODER,
        },
        "cond_stage_config": {"target": "torch.nn.Identity"},
    },
}  # fmt: skip


def install(config: str) -> None:
    """The package, with a tiny model's configuration for any name, and without what it needs setuptools for."""
    sys.path.append(str(PACKAGE))
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
    importlib.import_module("mvdream.model_zoo").get_config_file = lambda name: config


@pytest.fixture(scope="module")
def files(threestudio: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mvdream")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": CONFIG}))
    install(str(folder / "config.yaml"))
    torch.manual_seed(0)
    model = importlib.import_module("mvdream.ldm.util").instantiate_from_config(CONFIG)
    for parameter in model.parameters():  # some begin at zero, which would hide what goes through them
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    torch.save(model.state_dict(), folder / "model.pt")
    return {"config": str(folder / "config.yaml"), "ckpt_path": str(folder / "model.pt")}


@pytest.mark.parametrize("recon_loss", [True, False])
def test_one_draw_gives_the_stock_gradient(
    recon_loss: bool, threestudio: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("stock_mvdream", STOCK / "guidance" / "mvdream_guidance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threestudio.__modules__.pop(mvdream.KIND, None)
    spec.loader.exec_module(module)
    cfg = {"ckpt_path": files["ckpt_path"], "image_size": 16, "recon_loss": recon_loss}
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
import sys, runpy, test_mvdream
test_mvdream.install(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], None, "__main__")
"""


def test_the_shipped_configuration_trains(
    checkout: Path, files: dict[str, str], sd_folder_512: Path, tmp_path: Path
) -> None:
    script, file = Path(__file__).with_name("cpu_host.py"), EXTENSION / "configs" / "carv-mvdream.yaml"
    (tmp_path / "run" / "custom").mkdir(parents=True)
    (tmp_path / "run" / "custom" / "threestudio-mvdream").symlink_to(STOCK)
    given = [f"system.guidance.ckpt_path={files['ckpt_path']}", "system.guidance.image_size=16"]
    given += [f"system.prompt_processor.pretrained_model_name_or_path={sd_folder_512}", "data.batch_size=8"]
    given += ["system.prompt_processor.negative_prompt=bad"]  # the tiny tokenizer reads letters
    given += ["data.resolution_milestones=[]", "system.background.dir_encoding_config.n_frequencies=3"]
    given += ["system.background.dir_encoding_config.otype=ProgressiveBandFrequency"]
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    words = [files["config"], script, checkout, file, 3, tmp_path / "run"]
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
    assert NAME == "sd-v2.1-base-4view"
