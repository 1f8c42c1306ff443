"""How often a step of `carv generate` crosses from one file of the package into another.

    python benchmarks/file_borders.py [--list] [OVERRIDE ...]

Counted over one step of the default configuration, by the calls of the package's own functions: each call whose file
is not that of the call before is one crossing. The scene is small, which changes no call.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from bench import script_parser

import carv_3d
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D

PACKAGE = str(Path(carv_3d.__file__).parent)
SMALL = ("device=cpu", "system.geometry.resolution=16", "system.renderer.num_samples_per_ray=8")


def step_calls(overrides: list[str]) -> list[tuple[str, str]]:
    """(file, function) of each call in the second step, in order."""
    host = TextTo3D(load_config(overrides=[*SMALL, *overrides], prompt="a red mug", seed=0))
    host.train_step()
    calls: list[tuple[str, str]] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not file.endswith("_loops.py"):  # compiled, called in parts
            calls.append((file[len(PACKAGE) + 1 :], frame.f_code.co_name))

    sys.setprofile(record)
    host.train_step()
    sys.setprofile(None)
    return calls


def crossings(calls: list[tuple[str, str]]) -> int:
    """How often the file of a call is another than that of the call before."""
    return sum(a != b for (a, _), (b, _) in itertools.pairwise(calls))


def main() -> None:
    """Prints the counts, and with --list every call."""
    parser = script_parser(__doc__)
    parser.add_argument("--list", action="store_true", help="every call too")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    o = parser.parse_args()
    calls = step_calls(o.overrides)
    files = [file for file, _ in calls]
    if o.list:
        for i, (file, name) in enumerate(calls):
            print(f"{'>' if i and file != files[i - 1] else ' '} {file}: {name}")
    print(f"{len(calls)} calls in {len(set(files))} files, {crossings(calls)} file borders crossed")
    for name, n in Counter(calls).most_common(8):
        print(f"{n:4d}  {name[0]}: {name[1]}")


if __name__ == "__main__":
    main()
