"""The arguments of `carv generate`."""

from __future__ import annotations

import argparse

from carv_3d.cli.parser import Parser, command, one_word
from carv_3d.errors import CarvError

EXAMPLE = 'carv generate "a red mug"'
PROMPT = "system.prompt_processor.prompt"
HELP = """carv generate PROMPT [--config YAML] [--out DIR] [--seed N] [--resume] [--dry-run]
       [key=value ...]

Make a textured mesh from a prompt: asset.glb, asset.obj, turntable.mp4, preview.png, report.html.

key=value sets an option; `carv options generate` lists them. Ctrl-C saves the run and stops.

examples:
  carv generate "a red mug" num_draws=8 trainer.max_steps=100
  carv generate "a red mug" --config carv-tiny-hash-grid --out outputs/mug
  carv generate --resume --out outputs/mug
  carv generate -- "x=y mug"          a prompt that looks like an option"""


def _parser() -> Parser:
    parser = Parser("carv generate", HELP)
    parser.path("--config", metavar="YAML", help="a file, or the name of one that comes with carv_3d")
    parser.run_flags("outputs/<prompt>-<seed>", "settings, models")
    return parser


@command(_parser)
def main(args: argparse.Namespace) -> int:
    """`carv generate`: see its --help."""
    prompt = one_word(args.words, "prompts", EXAMPLE)
    as_option = any(word.partition("=")[0] in (PROMPT, "prompt") for word in args.options)
    if prompt is not None and not prompt.strip():
        raise CarvError(f"the prompt is empty; write what to make, such as {EXAMPLE}")
    if prompt is None and not as_option and not (args.resume and args.out) and args.config is None:
        hint = " (a prompt that holds = goes behind --)" if args.options else ""
        raise CarvError(f"a prompt is missing; write what to make, such as {EXAMPLE}{hint}")

    from carv_3d.generate.request import Request

    request = Request(
        prompt=prompt or "",
        config=args.config,
        out=args.out,
        seed=args.seed,
        resume=args.resume,
        overrides=args.options,
    )
    if args.dry_run:
        from carv_3d.generate.dry_run import dry_run

        return dry_run(request)
    from carv_3d.generate.run import generate as do_run

    return do_run(request)
