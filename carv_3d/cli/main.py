"""The command `carv`. Heavy imports wait until a command needs them: `carv --help` answers at once."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import types
from collections.abc import Sequence

from carv_3d.cli import completion
from carv_3d.cli.environment import settle_environment
from carv_3d.cli.streams import GONE, one_interrupt, open_closed_streams, steady_streams
from carv_3d.errors import CarvError, packages, shown
from carv_3d.io.files import os_errors_explained
from carv_3d.version import __version__

# Name and help of each; its `main` in the module of that name takes the other words and returns the exit status.
COMMANDS = {
    "generate": "make a mesh, a turntable and a report from a prompt",
    "variance": "how noisy each estimator's gradient is, and what a step costs",
    "compare": "compare runs: curves, tables, assets to turn",
    "attribute": "find the training images that influenced an image or asset",
    "distill": "train a one-step generator from a diffusion model",
    "threestudio": "train a stock configuration of threestudio with this guidance",
    "view": "turn a run's asset in the browser",
    "runs": "list the runs of a folder, and remove some",
    "options": "list options, their defaults and meaning",
    "doctor": "check what is installed, what is missing, and how to fix it",
}
HELP, VERSION = ("-h", "--help", "help"), ("-V", "--version")
RUNS = ("generate", "variance", "compare", "attribute", "distill")  # their product is files
# of commands whose extra has another name
EXTRAS = {
    "variance": "generate", "threestudio": "generate", "runs": "generate", "options": "all", "doctor": "generate",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `carv` and return its exit status.

    Returns:
        0 done, 2 something the user can mend, 130 interrupted, 141 what was to be shown had no reader.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if completion.VARIABLE in os.environ and arguments is None:
        completion.complete(COMMANDS)
    open_closed_streams()
    with one_interrupt(), steady_streams() as shown:
        status = _explained(words)
    lost = None if shown is None else shown.lost
    if status or lost is None or (words and words[0] in RUNS and not {"--dry-run", "--help", "-h"} & set(words)):
        return status
    return 141 if lost.errno in GONE else 2


def _explained(words: list[str]) -> int:
    try:
        settle_environment()
        with os_errors_explained():
            return _dispatch(words)
    except CarvError as error:
        print(f"carv: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _of_memory(error):
            raise
        print("carv: memory ran out; close other programs, or ask for something smaller", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("carv: interrupted", file=sys.stderr)
        return 130


def _of_memory(error: RuntimeError) -> bool:
    """Whether torch, if it was loaded, could not have the memory that it asked for."""
    if "torch" not in sys.modules:
        return False
    from carv_3d.core.batching import is_out_of_memory

    return is_out_of_memory(error)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in (*HELP, *VERSION):
        if words[1:]:
            instead = f", or write carv {words[1]} --help" if words[0] in HELP and words[1] in COMMANDS else ""
            raise CarvError(f"carv {words[0]} takes nothing more; leave {shown(words[1])} out{instead}")
        print(f"carv_3d {__version__}" if words and words[0] in VERSION else _usage())
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, list(COMMANDS), 1, 0.5)
        hint = f"did you mean carv {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        kind = "option" if name.startswith("-") else "command"
        raise CarvError(f"unknown {kind} {name!r}; {hint}")
    with packages(EXTRAS.get(name, name)):
        status: int = importlib.import_module(f"carv_3d.cli.{name}").main(words[1:])
    return status


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: carv COMMAND [ARGUMENT ...]",
            "",
            "Compute-aware variance reduction for diffusion teachers (arXiv 2605.21489).",
            "",
            *lines,
            "",
            "carv COMMAND --help shows the arguments of a command; carv --version shows the version.",
        ]
    )


class _Command(types.ModuleType):
    """This module can be called: console scripts of an older installation hold `from carv_3d.cli import main`."""

    def __call__(self) -> int:
        return main()


sys.modules[__name__].__class__ = _Command
