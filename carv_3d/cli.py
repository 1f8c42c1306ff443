"""The command `carv`. Heavy imports wait until a command needs them: `carv --help` answers at once."""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from carv_3d import __version__
from carv_3d.errors import CarvError
from carv_3d.files import os_errors_told

# name -> (module, function taking the remaining arguments and returning the exit status, help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "generate": ("carv_3d.cli", "generate", "a prompt becomes a textured mesh, a turntable and a report"),
    "variance": ("carv_3d.variance.command", "main", "what each estimator's gradient varies and what its seconds buy"),
    "compare": ("carv_3d.compare.command", "main", "runs side by side: curves, tables, assets to turn"),
    "attribute": ("carv_3d.attribution.cli", "main", "which training pictures made a picture, a prompt or an asset"),
    "distill": ("carv_3d.distill.cli", "main", "a diffusion model becomes a one-step generator"),
    "doctor": ("carv_3d.cli", "doctor", "what is on this machine, what is not, and the remedy"),
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence with the nearest right option, raised as CarvError.

    Options are not abbreviated, and descriptions keep their lines, unless it is told otherwise.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **more})

    def error(self, message: str) -> NoReturn:
        raise CarvError(f"{message[0].lower()}{message[1:]}; see {self.prog} --help")

    def read(self, words: Sequence[str], intermixed: bool = False) -> argparse.Namespace | None:
        """The arguments; None where --help was asked for and shown. Raises CarvError for an unknown option.

        intermixed: options may stand between the positional words.
        """
        try:
            parse = self.parse_known_intermixed_args if intermixed else self.parse_known_args
            args, rest = parse(list(words))
        except SystemExit:  # --help; mistakes are CarvErrors
            return None
        self.refuse_unknown(rest)
        return args

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Raise for leftover words that look like options."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise CarvError(f"unknown option {name}; {hint}")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are key=value, and the others."""
    overrides = [w for w in words if re.match(r"[A-Za-z_][\w.]*=", w)]
    return overrides, [w for w in words if w not in overrides]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `carv` and return its exit status: 0 done, 2 something the user can mend, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with os_errors_told():
            return _dispatch(words)
    except CarvError as error:
        print(f"carv: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("carv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe went away: `carv doctor | head -1`
        sys.stderr.close()
        return 141


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"carv_3d {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, list(COMMANDS), 1, 0.5)
        hint = f"did you mean carv {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        kind = "option" if name.startswith("-") else "command"
        raise CarvError(f"unknown {kind} {name!r}; {hint}")
    module, function, _ = COMMANDS[name]
    status: int = getattr(importlib.import_module(module), function)(words[1:])
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: carv COMMAND [ARGUMENT ...]",
            "",
            "Compute-aware variance reduction for diffusion teachers (arXiv 2605.21489).",
            "",
            *lines,
            "",
            "carv COMMAND --help tells the arguments; carv --version the version.",
        ]
    )


def _generate_parser() -> Parser:
    parser = Parser(
        prog="carv generate",
        description="A prompt becomes asset.glb, turntable.mp4 and .gif, preview.png and report.html.",
        usage="carv generate PROMPT [--config YAML] [--out DIR] [--seed N] [--resume] [--dry-run] "
        "[key=value ...]",
        epilog="key=value sets any option of the configuration, such as\n"
        "  system.guidance.num_draws=8 trainer.max_steps=100\n"
        "Ctrl-C ends a run after the step at hand and saves it; --resume goes on.",
    )
    parser.add_argument("words", nargs="*", metavar="PROMPT, key=value")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a configuration (see configs/)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder (default: outputs/<prompt>-<seed>)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell the settings, models, time and memory; write nothing"
    )
    return parser


def generate(words: list[str]) -> int:
    """`carv generate`: see its --help."""
    args = _generate_parser().read(words, intermixed=True)
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

    from carv_3d.request import Request

    request = Request(
        prompt=prompt,
        config=args.config,
        out=args.out,
        seed=args.seed,
        resume=args.resume,
        overrides=overrides,
    )
    if args.dry_run:
        from carv_3d.dry_run import dry_run

        return dry_run(request)
    from carv_3d.run import generate as do_run

    return do_run(request)


def doctor(words: list[str]) -> int:
    """`carv doctor`: see its --help."""
    parser = Parser(
        prog="carv doctor",
        formatter_class=argparse.HelpFormatter,
        description="What is on this machine, what is not, and the exact remedy. Status 0: carv can run.",
    )
    parser.add_argument(
        "--threestudio", metavar="PATH", help="whether this checkout and this Python are ready for threestudio-carv"
    )
    args = parser.read(words)
    if args is None:
        return 0

    from carv_3d import doctor as examination

    return examination.main(threestudio=args.threestudio)


if __name__ == "__main__":
    sys.exit(main())
