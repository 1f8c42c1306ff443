"""The arguments of `carv generate`."""

from __future__ import annotations

from pathlib import Path

from carv_3d.cli.parser import Parser, split_overrides
from carv_3d.errors import CarvError


def _parser() -> Parser:
    parser = Parser(
        prog="carv generate",
        description="A prompt becomes asset.glb, turntable.mp4 and .gif, preview.png and report.html.",
        usage="carv generate PROMPT [--config YAML] [--out DIR] [--seed N] [--resume] [--dry-run] [key=value ...]",
        epilog="key=value sets any option of the configuration, such as\n"
        "  system.guidance.num_draws=8 trainer.max_steps=100\n"
        "Ctrl-C ends a run after the step at hand and saves it; --resume goes on.",
    )
    parser.add_argument("words", nargs="*", metavar="PROMPT, key=value")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a configuration (see configs/)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder (default: outputs/<prompt>-<seed>)")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--resume", action="store_true", help="resume the run in the folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell the settings, models, time and memory; write nothing"
    )
    return parser


def main(words: list[str]) -> int:
    """`carv generate`: see its --help."""
    args = _parser().read(words, intermixed=True)
    if args is None:
        return 0
    overrides, prompts = split_overrides(args.words)
    if len(prompts) > 1:
        raise CarvError(
            f"{len(prompts)} prompts were given ({', '.join(map(repr, prompts[:3]))}); "
            'put one in quotation marks, such as carv generate "a red mug"'
        )
    prompt = prompts[0] if prompts else None
    if prompt is not None and not prompt.strip():
        raise CarvError('the prompt is empty; write what to make, such as carv generate "a red mug"')
    if prompt is None and not (args.resume and args.out) and args.config is None:
        raise CarvError('a prompt is missing; write what to make, such as carv generate "a red mug"')

    from carv_3d.generate.request import Request

    request = Request(
        prompt=prompt,
        config=args.config,
        out=args.out,
        seed=args.seed,
        resume=args.resume,
        overrides=overrides,
    )
    if args.dry_run:
        from carv_3d.generate.dry_run import dry_run

        return dry_run(request)
    from carv_3d.generate.run import generate as do_run

    return do_run(request)
