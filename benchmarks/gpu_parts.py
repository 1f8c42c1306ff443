"""The parts of `benchmarks/gpu.py`: each measures one thing of one model, in the seconds that it is given."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from carv_3d.compare.command import run_sweep
from carv_3d.compare.methods import parse_method
from carv_3d.compare.request import CompareOptions
from carv_3d.compare.sweep import Sweep
from carv_3d.core.batching import is_out_of_memory
from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.generate.config import CONFIGS, load_config
from carv_3d.generate.trainer import TextTo3D, load_teacher
from carv_3d.io.structured import read_csv
from carv_3d.teachers.families import BUILT_IN
from carv_3d.variance.command import VarianceRequest, run

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
TINY_PROMPTS = ("a red mug", "a green tree", "a blue chair", "an orange rocket", "a white snowman")
PROMPTS = (
    "a delicious hamburger", "a ripe strawberry", "an old leather armchair", "a blue jay on a rock", "a ceramic teapot",
)  # fmt: skip
MOST_DRAWS = 8  # K of the convergence and of variance tables, where more is asked for
OVERHEAD = 1.6  # of a comparison's seconds over its training time: previews, scores, meshes


class StoppedError(CarvError):
    """A signal came; the part is resumed by the same command."""


@dataclass(frozen=True)
class Plan:
    """What is the same for all models: K, how many prompts, options of the scene."""

    draws: tuple[int, ...]
    prompts: int
    overrides: tuple[str, ...]

    @property
    def few_draws(self) -> tuple[int, ...]:
        """Those K that variance and convergence take."""
        return tuple(K for K in self.draws if K <= MOST_DRAWS) or self.draws[:1]

    def scene(self, model: str) -> tuple[Path, tuple[str, ...], list[str]]:
        """The configuration for a model, its prompts, and the overrides that name it."""
        tiny = model in BUILT_IN
        named = [] if tiny else [f"system.guidance.pretrained_model_name_or_path={model}"]
        named += [] if tiny or not _has_tcnn() else ["system.geometry_type=tcnn"]
        config = CONFIGS / ("carv-tiny.yaml" if tiny else "stable-diffusion.yaml")
        return config, (TINY_PROMPTS if tiny else PROMPTS)[: self.prompts], [*named, *self.overrides]


def _has_tcnn() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        import tinycudann  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def machine() -> str:
    """The device and the packages that every figure belongs to."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def steps(model: str, plan: Plan, seconds: float, work: Path) -> list[Row]:
    """Medians of interleaved steps at each K, by phase, and the peak memory; a K that is too large says so."""
    config, prompts, overrides = plan.scene(model)
    teacher = load_teacher(load_config(config, overrides, prompts[0]))
    runs: dict[int, TextTo3D] = {}
    rows: dict[int, Row] = {}
    for K in plan.draws:
        own = [*overrides, f"system.guidance.num_draws={K}", "system.guidance.antithetic=false", "data.batch_size=1"]
        runs[K] = TextTo3D(load_config(config, own, prompts[0]), teacher)
        try:
            rows[K] = {"K": K, "GiB": _peak_memory(runs[K]), "seconds": [], "phases": []}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            del runs[K]
            rows[K] = {"K": K, "note": "memory ran out"}
            break
    until = time.perf_counter() + seconds
    while runs:  # whole rounds: two at least, then until the time is up
        for K, trainer in runs.items():
            begin = time.perf_counter()
            trainer.train_step()
            _wait()
            rows[K]["seconds"].append(time.perf_counter() - begin)
            rows[K]["phases"].append(dict(trainer.meter.seconds))
        done = len(rows[plan.draws[0]]["seconds"])
        if done >= 2 and (time.perf_counter() > until or done >= 200):
            break
    return [_step_row(row) for row in rows.values()]


def _step_row(row: Row) -> Row:
    if "note" in row:
        return row
    phases = {name for phase in row["phases"] for name in phase}
    medians = {f"{n}_s": statistics.median(p.get(n, 0.0) for p in row["phases"]) for n in sorted(phases)}
    kept = {"K": row["K"], "repeats": len(row["seconds"]), "step_s": statistics.median(row["seconds"]), **medians}
    return kept if row["GiB"] is None else {**kept, "peak_GiB": row["GiB"]}


def _peak_memory(trainer: TextTo3D) -> float | None:
    """GiB of the device at the peak of two steps; None on a CPU, whose peak is the whole process's."""
    cuda = trainer.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(trainer.device)
    for _ in range(2):  # the first compiles and fills caches
        trainer.train_step()
    return torch.cuda.max_memory_allocated(trainer.device) / 2**30 if cuda else None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def variance(model: str, plan: Plan, seconds: float, work: Path) -> list[Row]:
    """The rows of `carv variance`: ECM against two renders of one draw, at three points of a run."""
    config, prompts, overrides = plan.scene(model)
    request = VarianceRequest(
        source=config, prompt=prompts[0], overrides=overrides, out=work, resume=work.exists(), budget=seconds, R=(1, 2),
        K=plan.few_draws, methods=("uniform", "is+strat"), at=_points(seconds),
    )  # fmt: skip
    if run(request):
        raise StoppedError("stopped; the same command resumes it")
    return list(read_csv(work / "variance.csv")[0])


def _points(seconds: float) -> tuple[int, ...]:
    """Early steps alone where there is no time to train for long."""
    return (2,) if seconds < 120 else (20, 100) if seconds < 1800 else (20, 100, 500)


def convergence(model: str, plan: Plan, seconds: float, work: Path) -> list[Row]:
    """Final scores and times to target of `carv compare`, the usual estimator against K draws."""
    config, prompts, overrides = plan.scene(model)
    K = max(plan.few_draws)
    methods = [
        parse_method("baseline=num_draws=1,proposal=uniform,stratify=none,antithetic=false"),
        parse_method(f"carv=num_draws={K},proposal=weight,stratify=render,antithetic=false"),
    ]
    budget = max(seconds / OVERHEAD / (len(prompts) * len(methods)), 1.0)
    sweep = Sweep(list(prompts), methods, common=list(overrides), config=config, budget=budget, points=10)
    if run_sweep(sweep, CompareOptions(out=work), EngineOptions()):
        raise StoppedError("stopped; the same command resumes it")
    rows = [{"table": "final", **row} for row in read_csv(work / "final.csv")[0]]
    times = work / "time_to_target.csv"
    return rows + ([{"table": "time", **row} for row in read_csv(times)[0]] if times.exists() else [])


def threestudio(model: str, plan: Plan, seconds: float, work: Path) -> list[Row]:
    """What benchmarks/threestudio.py prints, as lines; the stock guidance and this one in one process."""
    if not os.environ.get("CARV_THREESTUDIO"):
        raise CarvError("CARV_THREESTUDIO names no threestudio checkout")
    script = [sys.executable, str(ROOT / "benchmarks" / "threestudio.py"), "--model", model]
    try:
        done = subprocess.run(script, capture_output=True, text=True, timeout=max(seconds, 1.0), check=False)
    except subprocess.TimeoutExpired as error:
        raise CarvError(f"benchmarks/threestudio.py did not end within {seconds:.0f} s") from error
    if done.returncode:
        raise CarvError(f"benchmarks/threestudio.py ended with: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return [{"line": line} for line in done.stdout.splitlines() if line.startswith("|")]


PARTS: dict[str, Callable[[str, Plan, float, Path], list[Row]]] = {
    "steps": steps, "variance": variance, "convergence": convergence, "threestudio": threestudio,
}  # fmt: skip
