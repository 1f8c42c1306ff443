"""The arguments of `carv generate`."""

from __future__ import annotations

import argparse
from typing import Any

from carv_3d.cli.parser import Parser, command, flags, one_word
from carv_3d.config.request import GenerateRequest, ManyOptions, ViewOptions
from carv_3d.errors import CarvError

EXAMPLE = 'carv generate "a red mug"'
PROMPT = "system.prompt_processor.prompt"
HELP = """carv generate PROMPT [--flag VALUE ...] [key=value ...]
       carv generate --prompts FILE [--flag VALUE ...] [key=value ...]

Make a textured mesh from a prompt: asset.glb, asset.obj, turntable.mp4, preview.png, report.html.

key=value sets an option; `carv options generate` lists them. Ctrl-C saves the run and stops.

examples:
  carv generate "a red mug" num_draws=8 trainer.max_steps=100
  carv generate "a red mug" --config carv-tiny-hash-grid --out outputs/mug
  carv generate --resume --out outputs/mug
  carv generate --prompts prompts.txt --out outputs/many
  carv generate -- "x=y mug"          a prompt that looks like an option"""


def parser() -> Parser:
    """Of `carv generate`'s arguments."""
    made = Parser("carv generate", HELP)
    made.declare(GenerateRequest, "config", "out", "seed", "resume")
    made.dry_run("settings, models")
    made.declare(ViewOptions, "view", "view_address", "view_port", group="live view")
    made.declare(ManyOptions, "prompts", "engine", "address", "workers", group="many prompts")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv generate`: see its --help."""
    given = flags(args)
    many = {name: given.pop(name) for name in ManyOptions.declared() if name in given}
    view = ViewOptions(**{name: given.pop(name) for name in ViewOptions.declared() if name in given})
    prompt = one_word(args.words, "prompts", EXAMPLE)
    as_option = any(word.partition("=")[0] in (PROMPT, "prompt") for word in args.options)
    if prompt is not None and not prompt.strip():
        raise CarvError(f"the prompt is empty; write what to make, such as {EXAMPLE}")
    if prompt is not None and as_option:
        raise CarvError("the prompt is given twice, as a word and as an option; give one of them")
    dry = given.pop("dry_run")
    if not view.view and view != ViewOptions():
        raise CarvError("--view-address and --view-port are of the live view; add --view, or leave them out")
    if view.view and (many or dry):
        raise CarvError("--view shows one run while it trains; leave it out with --prompts and --dry-run")
    if many:
        return _many(ManyOptions(**many), given, args, prompt is not None or as_option, dry)
    if prompt is None and not as_option and "config" not in given and not {"resume", "out"} <= given.keys():
        hint = " (a prompt that holds = goes behind --)" if args.options else ""
        raise CarvError(f"a prompt is missing; write what to make, such as {EXAMPLE}{hint}")

    request = GenerateRequest(prompt=prompt or "", overrides=args.options, **given)
    if dry:
        from carv_3d.generate.dry_run import dry_run

        return dry_run(request)
    from carv_3d.generate.run import generate as do_run

    return do_run(request, view)


def _many(many: ManyOptions, given: dict[str, Any], args: argparse.Namespace, has_prompt: bool, dry: bool) -> int:
    """`carv generate --prompts FILE`."""
    if many.prompts is None:
        raise CarvError("--engine, --address and --workers are for many prompts; add --prompts FILE, or leave them out")
    if has_prompt:
        raise CarvError("a prompt and --prompts are both given; give one of them")
    if dry:
        raise CarvError("--dry-run shows one run; name one prompt of the file in place of --prompts")
    if given.pop("resume", False):
        raise CarvError("--prompts continues what is in its folder by itself; leave --resume out")
    from carv_3d.generate.many import generate_many

    return generate_many(GenerateRequest(overrides=args.options, **given), many)
