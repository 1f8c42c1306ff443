"""The arguments of `carv variance`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import Parser
from carv_3d.errors import CarvError
from carv_3d.variance.methods import DEFAULT, WORDS


def parser() -> Parser:
    """Of `carv variance`'s arguments."""
    words = "\n".join(f"  {name:<11} {word.help}" for name, word in WORDS.items())
    p = Parser(
        prog="carv variance",
        description="The variance of each estimator's gradient by its sources, its seconds by phase, and the ECM and\n"
        "RE that follow, at points of a run: tables, variance.csv and images.",
        epilog=f"methods, joined by + (such as is+strat+antithetic):\n{words}\n"
        "The baseline is (R, K) = (2, 1), uniform. Ctrl-C ends after the batch at hand; --resume continues.",
    )
    p.add_argument("source", type=Path, metavar="CONFIG_OR_RUN", help="a YAML file, or the folder of a run")
    p.add_argument("--prompt", help="where the configuration has none")
    p.add_argument("--at", type=int, nargs="+", default=(), metavar="STEP",
                   help="points of the run (default: early, middle, late; for a run's folder, its end)")  # fmt: skip
    p.add_argument("--grid", nargs="+", default=(), metavar="R=1,2 K=1,4", help="(default: R=1 K=1,2,4,8)")
    p.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=DEFAULT, metavar="A,B",
                   help=f"(default: {','.join(DEFAULT)})")  # fmt: skip
    p.add_argument("--tolerance", type=float, default=0.1, help="half of each ECM's interval, relative (default: 0.1)")
    p.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="of measuring, in all (default: 600)")
    p.add_argument("--seed", type=int, metavar="N")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/variance-<prompt>)")
    p.add_argument("--resume", action="store_true", help="resume what is in the folder")
    p.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="key=value", help="options of the run")
    return p


def main(words: list[str]) -> int:
    """`carv variance`: see its --help."""
    args = parser().read(words)
    if args is None:
        return 0
    given = {k: v for k, v in vars(args).items() if k != "grid"} | read_grid(args.grid)
    from carv_3d.variance.command import VarianceRequest, run

    return run(VarianceRequest(**given))


def read_grid(parts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """["R=1,2", "K=4"] as {"R": (1, 2), "K": (4,)}."""
    out: dict[str, tuple[int, ...]] = {}
    for part in parts:
        name, _, numbers = part.partition("=")
        if name not in ("R", "K") or not all(n.isdecimal() for n in numbers.split(",")):
            raise CarvError(f"--grid does not take {part!r}; write it as R=1,2 K=1,2,4,8.")
        out[name] = tuple(sorted({int(n) for n in numbers.split(",")}))
    return out
