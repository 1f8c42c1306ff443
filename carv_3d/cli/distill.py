"""The arguments of `carv distill`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import Parser, split_overrides
from carv_3d.errors import CarvError


def _parser() -> Parser:
    parser = Parser(
        prog="carv distill",
        description="A diffusion model becomes a one-step generator, by distribution matching.",
        usage="carv distill MODEL [--out DIR] [--seed N] [--resume] [--dry-run] [key=value ...]\n"
        "       carv distill variance MODEL_OR_RUN [--settings A,B] [--budget SECONDS] [--out DIR] [key=value ...]",
        epilog="key=value sets any option, such as num_draws=8 steps=2000 prompts=FILE; --dry-run shows them all.\n"
        "Ctrl-C ends a run after the step at hand and saves it; --resume goes on.\n"
        "Several processes: accelerate launch -m carv_3d.cli distill MODEL ...; carv distill variance --help.",
    )
    parser.add_argument("words", nargs="*", metavar="MODEL, key=value")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder (default: outputs/distill-<model>-<seed>)")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--resume", action="store_true", help="resume the run in the folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell the settings, model, time and memory; write nothing"
    )
    return parser


def _variance_parser() -> Parser:
    from carv_3d.distill.variance import DEFAULT

    parser = Parser(
        prog="carv distill variance",
        description="The variance of the generator's gradient at (B, K), beside the paper's: a table and variance.csv.",
        usage="carv distill variance MODEL_OR_RUN [--settings ...] [--budget SECONDS] [--out DIR] [key=value ...]",
        epilog="A setting is samples x draws with the design's words, strat, global or antithetic, joined by +.\n"
        "Ctrl-C ends after the setting at hand.",
    )
    parser.add_argument("words", nargs="*", metavar="MODEL_OR_RUN, key=value")
    parser.add_argument(
        "--settings",
        type=lambda text: tuple(text.split(",")),
        default=DEFAULT,
        metavar="A,B",
        help=f"(default: {','.join(DEFAULT)})",
    )
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="of gradients of each (default: 40)")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="of measuring (default: 600)")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/distill-variance-<model>)")
    return parser


def main(words: list[str]) -> int:
    """`carv distill`: see its --help."""
    if words[:1] == ["variance"]:
        return variance(words[1:])
    args = _parser().read(words, intermixed=True)
    if args is None:
        return 0
    model, overrides = _model_and_overrides(args.words, "carv distill carv-tiny")
    if model is None and not args.resume:
        raise CarvError("the model is missing; name one, such as carv distill carv-tiny")
    from carv_3d.distill.command import distill
    from carv_3d.distill.request import DistillRequest

    request = DistillRequest(model, args.out, args.seed, args.resume, overrides)
    if args.dry_run:
        from carv_3d.distill.dry_run import dry_run

        return dry_run(request)
    return distill(request)


def variance(words: list[str]) -> int:
    """`carv distill variance`: see its --help."""
    args = _variance_parser().read(words, intermixed=True)
    if args is None:
        return 0
    source, overrides = _model_and_overrides(args.words, "carv distill variance carv-tiny")
    if source is None:
        raise CarvError("the model or run is missing; name one, such as carv distill variance carv-tiny")
    from carv_3d.distill.variance_command import VarianceRequest, measure

    return measure(VarianceRequest(source, args.settings, args.pairs, args.budget, args.seed, args.out, overrides))


def _model_and_overrides(words: Sequence[str], example: str) -> tuple[str | None, list[str]]:
    overrides, models = split_overrides(words)
    if len(models) > 1:
        raise CarvError(f"{len(models)} models were given ({', '.join(map(repr, models[:3]))}); name one: {example}")
    return (models[0] if models else None), overrides
