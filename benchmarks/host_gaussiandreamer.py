"""GaussianDreamer's own launcher and system on a CPU, with the patch of `examples/hosts`: does it run?

    PYTHON benchmarks/host_gaussiandreamer.py CHECKOUT [--steps 4] [--stock] [key=value ...]

CHECKOUT is a clone, which is only read; PYTHON has threestudio's packages and plyfile. A line of JSON for every step.
Its system begins from random points, where Shap-E would make them; they are splatted in PyTorch
(`host_stand_ins`) at 32 x 32, and a tiny random Stable Diffusion guides them. Nothing of it is measured: neither the
seconds nor the gradients are those of a GPU's run.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import host_gaussians as gaussians  # noqa: E402
from bench import run_script, script_parser  # noqa: E402
from hosts import patched  # noqa: E402
from small_models import build_sd_folder  # noqa: E402

from carv_3d.hosts.launch import explained  # noqa: E402

SMALL = [
    *gaussians.SMALL, "system.prompt_processor.negative_prompt=bad", "data.height=32", "data.width=32",
    "data.eval_height=32", "data.eval_width=32", "data.n_val_views=1", "data.n_test_views=2", "data.batch_size=2",
]  # fmt: skip
OURS = [f"system.guidance_type={gaussians.OURS}", "system.guidance.num_draws=auto"]


def _train_on_the_cpu() -> None:
    import pytorch_lightning as pl

    class Recorder(pl.Callback):
        def on_train_batch_end(self, trainer: Any, system: Any, *_: Any) -> None:
            sparsity = float(trainer.callback_metrics["train/loss_sparsity"])
            line = {"step": trainer.global_step, "points": len(system.gaussian.get_xyz), "sparsity": sparsity}
            print(json.dumps({**line, "guidance": type(system.guidance).__name__}), flush=True)

    class CpuTrainer(pl.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.update(accelerator="cpu", devices=1, enable_progress_bar=False)
            kwargs["callbacks"] = [
                *(each for each in kwargs.get("callbacks", []) if not isinstance(each, pl.callbacks.ProgressBar)),
                Recorder(),
            ]
            super().__init__(*args, **kwargs)

    pl.Trainer = CpuTrainer


def main() -> int:
    """The launcher of a patched copy, in its folder."""
    parser = script_parser(__doc__, steps=4)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--stock", action="store_true", help="with threestudio's own guidance")
    o, words = parser.parse_known_args()
    torch.set_num_threads(1)
    import transformers  # noqa: F401, before there are stand-ins

    with tempfile.TemporaryDirectory() as temporary:
        folder = patched("gaussiandreamer", o.checkout.resolve(), Path(temporary).resolve())
        gaussians.link_extension(folder)
        model = Path(temporary) / "model"
        build_sd_folder(model, latent=64, context=77, levels=4)
        named = [f"system.{name}.pretrained_model_name_or_path={model}" for name in ("prompt_processor", "guidance")]
        os.chdir(folder)
        _train_on_the_cpu()
        gaussians.on_the_cpu(folder, points=64)
        given = ["--config", gaussians.CONFIG, "--train", "--gpu", "0", *SMALL, *named]
        sys.argv = ["launch.py", *given, f"trainer.max_steps={o.steps}", *([] if o.stock else OURS), *words]
        status = explained(lambda: runpy.run_path("launch.py", run_name="__main__"))
        print(json.dumps({"files": sorted({path.suffix for path in Path("outputs").rglob("*") if path.is_file()})}))
        os.chdir(ROOT)
    return status


if __name__ == "__main__":
    run_script(main)
