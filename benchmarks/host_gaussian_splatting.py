"""threestudio-3dgs in a real threestudio on a CPU, by `carv-gaussian-splatting`: does it run, up to its densification?

    PYTHON benchmarks/host_gaussian_splatting.py CHECKOUT EXTENSION [--steps 60] [--from 20] [--every 10] [key=value]

CHECKOUT is threestudio, EXTENSION threestudio-3dgs, both only read; PYTHON has threestudio's packages and plyfile. 64
Gaussians at 32 x 32, two views a step, splatted in PyTorch (`host_stand_ins`), a tiny random model. Gaussians are added
and pruned every --every steps after step --from; the configuration's own are 300 and 500. A line of JSON for every step
that changes their number, and at the end what `num_draws: auto` chose, what is logged, and the files that there are.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "real_host")]

import cpu_host  # noqa: E402
from bench import run_script, script_parser  # noqa: E402
from host_stand_ins import on_cpu, splatting  # noqa: E402
from small_models import build_sd_folder  # noqa: E402

SIZES = ("width", "height", "eval_width", "eval_height")
SMALL = [
    *(f"data.{name}=32" for name in SIZES), "data.batch_size=2", "data.n_val_views=1", "data.n_test_views=2",
    "system.geometry.init_num_pts=64", "system.prompt_processor.spawn=false", "trainer.limit_val_batches=0",
    "system.guidance.half_precision_weights=false", 'system.prompt_processor.prompt="a red mug"',
    "use_timestamp=false", "tag=trial",
]  # fmt: skip
SHOWN = ("K", "gauss_num", "nonfinite", "upstream_share")
MESHES = ("mcubes", "pymeshlab", "open3d")  # for exporting a mesh, which is not done


def words(model: Path, begin: int, every: int) -> list[str]:
    """Of the command line, but for the steps."""
    named = [f"system.{name}.pretrained_model_name_or_path={model}" for name in ("prompt_processor", "guidance")]
    pace = {"densify_from_iter": begin, "prune_from_iter": begin, "densification_interval": every}
    pace["prune_interval"] = every
    return [*SMALL, *named, *(f"system.geometry.{name}={value}" for name, value in pace.items())]


def changes(lines: list[dict[str, Any]]) -> list[dict[str, int]]:
    """The steps after which there is another number of Gaussians, of what each step logged at its start."""
    counts = [int(line["logged"]["gauss_num"]) for line in lines]
    pairs = enumerate(itertools.pairwise(counts), start=1)
    return [{"step": step, "from": old, "to": new} for step, (old, new) in pairs if old != new]


def main() -> None:
    """The launcher of threestudio, in a folder of its own."""
    parser = script_parser(__doc__, steps=60, every=10)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("extension", type=Path)
    parser.add_argument("--from", dest="begin", type=int, default=20)
    o, more = parser.parse_known_args()
    torch.set_num_threads(1)
    config = cpu_host.EXTENSION / "configs" / "carv-gaussian-splatting.yaml"
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "run", build_sd_folder(Path(temporary) / "model")
        (folder / "custom").mkdir(parents=True)
        (folder / "custom" / "threestudio-3dgs").symlink_to(o.extension.resolve())
        cpu_host.enter(o.checkout)
        sys.modules.update({name: types.ModuleType(name) for name in MESHES if name not in sys.modules})
        splatting()
        on_cpu()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            given = [*words(model, o.begin, o.every), *more]
            cpu_host.train(o.checkout.resolve(), config, o.steps, folder, given, small=[])
        lines = [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]
        for change in changes(lines):
            print(json.dumps(change))
        files = sorted({path.suffix for path in Path("outputs").rglob("*") if path.is_file()})
        last = {name: value for name, value in lines[-1]["logged"].items() if name in SHOWN}
        print(json.dumps({"steps": len(lines), "seconds": round(sum(line["seconds"] for line in lines), 1), **last}))
        print(json.dumps({"logged": sorted(lines[-1]["logged"]), "files": files}))
        os.chdir(ROOT)


if __name__ == "__main__":
    run_script(main)
