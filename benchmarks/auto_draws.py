"""`num_draws: auto` against the grid: its choice at points of a run, and the best fixed K there.

    ./install.sh python benchmarks/auto_draws.py [--prompt "a red mug"] [--at 60,150,270] [--budget S] [KEY=VALUE ...]

One run with `auto`. At each point its scene is frozen and every K of auto's grid measured on it as `carv variance`
does; "excess" is Var · seconds of the chosen K over that of the best K, and "measuring" the share of the run's seconds
so far that auto spent on looking (without the further draws, which its measured steps use as well).
"""

from __future__ import annotations

import copy

from bench import run_script, script_parser, whole_numbers

from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.runs.progress import Display
from carv_3d.variance.benchmark import Batch, VarianceBenchmark
from carv_3d.variance.command import measure
from carv_3d.variance.figures import rows
from carv_3d.variance.methods import BASELINE, Setting, method

METHOD = "is+strat+antithetic"  # the default design


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--at", type=whole_numbers, default=(60, 150, 270))
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of measuring the grid, in all")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of the run, as in carv generate")
    o = parser.parse_args()
    if min(o.at) < 1:
        raise CarvError(f"--at is {o.at}; steps are at least 1")
    given = ["num_draws=auto", "proposal=weight", "stratify=render", "antithetic=true"]
    given = [f"system.guidance.{option}" for option in given]
    trainer = TextTo3D(load_config(overrides=[*given, *o.overrides], prompt=o.prompt))
    if trainer.guidance.auto is None:
        raise CarvError("num_draws is given as a number; this benchmark is of num_draws=auto")
    grid = trainer.guidance.auto.grid
    settings = [BASELINE, *(Setting(1, K, method(METHOD)) for K in grid)]
    display, total, looking, lines = Display(), 0.0, 0.0, []
    for step in sorted(o.at):
        while trainer.step < step:
            metrics = trainer.train_step()
            total, looking = total + metrics["seconds"], looking + metrics["seconds_auto"]
        state, batches = copy.deepcopy(trainer.state_dict()), list[Batch]()
        measure(
            VarianceBenchmark(trainer, settings),
            batches,
            step,
            o.tolerance,
            o.budget / len(o.at),
            lambda: None,
            display,
        )
        trainer.load_state_dict(state)
        work = {row.setting.K: row.variance.value * row.seconds for row in rows(step, settings, batches)[1:]}
        chosen, best = int(metrics["K_auto"]), min(work, key=lambda K: work[K])
        on_grid = " | ".join(f"{work[K] / work[best]:.2f}" for K in grid)
        excess, share = work[chosen] / work[best] - 1, looking / total
        lines.append(f"| {step} | {chosen} | {best} | {excess:.1%} | {share:.1%} | {on_grid} |")
    print(f"| step | auto | best | excess | measuring | {' | '.join(f'K = {K}' for K in grid)} |")
    print("|" + "---|" * (5 + len(grid)))
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
