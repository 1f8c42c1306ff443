"""A GPU day in one command: step times, memory, ECM, convergence and threestudio, for every model that is at hand.

    ./install.sh python benchmarks/gpu.py --models /models [--hours 8] [--work outputs/gpu] [key=value ...]

--models is a folder of diffusers folders, one such folder, a hub id or carv-tiny; commas join several. For each model:

    steps        seconds of a step by phase and peak memory at K = 1 .. 32, interleaved
    variance     ECM of every (R, K) against two renders of one draw, in the NeRF of `carv generate`
    convergence  five prompts, the usual estimator and K draws, for the same seconds each
    threestudio  the same in threestudio, where CARV_THREESTUDIO names a checkout

figures.csv has every figure, and gpu.md the tables, in the form of the paper's (arXiv 2605.21489). Both are written
anew after every part. The time is shared out among the parts that are left, so that all of it ends within --hours. It
can be stopped or killed at any time. The same command resumes it, with --hours anew; a part that had begun keeps its
seconds. A part that fails is noted with its reason, and the next one begins. It runs on a CPU too, for trying it.
key=value sets an option of the scene.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import run_script, script_parser, whole_numbers
from gpu_page import figures, page
from gpu_parts import PARTS, Plan, StoppedError, machine

from carv_3d.core.batching import is_out_of_memory
from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import claimed, slug, write_atomic
from carv_3d.io.structured import read_json
from carv_3d.teachers.families import BUILT_IN
from carv_3d.teachers.load import find_model

SHARES = {"steps": 1.0, "variance": 3.0, "convergence": 5.0, "threestudio": 1.0}  # of the time, of each part


@dataclass(frozen=True)
class Part:
    """One part of the day: what is measured, on which model."""

    model: str
    name: str

    def file(self, work: Path) -> Path:
        """Where its result is kept."""
        return work / slug(self.model) / f"{self.name}.json"


def find_models(given: Sequence[str]) -> list[str]:
    """Names and folders of models: a folder without a model of its own stands for the models in it.

    Raises:
        CarvError: nothing there, or a model that cannot be read; nothing has been measured by then.
    """
    names: list[str] = []
    for word in given:
        folder = Path(word).expanduser()
        inside = sorted(index.parent for index in folder.glob("*/model_index.json")) if folder.is_dir() else []
        if word in BUILT_IN or not inside or (folder / "model_index.json").is_file():
            names.append(word)
        else:
            names += map(str, inside)
    for name in names:
        find_model(name)
    return list(dict.fromkeys(names))


def seconds_for(part: Part, left: Sequence[Part], until: float) -> float:
    """This part's share of the seconds until the end."""
    whole = sum(SHARES[p.name] for p in left)
    return max(until - time.time(), 0.0) * SHARES[part.name] / whole


def measure(part: Part, plan: Plan, seconds: float, work: Path) -> dict[str, Any]:
    """The result of one part: its rows, or a note that says why there are none."""
    run: Callable[..., list[dict[str, Any]]] = PARTS[part.name]
    folder = part.file(work).with_suffix("")
    begun = folder.with_suffix(".begun.json")
    if begun.exists():  # its budget and its points stay, or what was measured would not fit
        seconds = float(read_json(begun)["seconds"])
    begun.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(begun, json.dumps({"seconds": seconds}))
    try:
        return {"rows": run(part.model, plan, seconds, folder)}
    except StoppedError:
        raise
    except CarvError as error:
        return {"rows": [], "note": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"rows": [], "note": f"memory ran out: {first_line(error)}"}


def write(parts: Sequence[Part], work: Path) -> None:
    """figures.csv and gpu.md, of what there is."""
    results = [(p.model, p.name, read_json(p.file(work))) for p in parts if p.file(work).exists()]
    write_atomic(work / "figures.csv", figures(results))
    write_atomic(work / "gpu.md", page(results, machine()))


def main() -> None:
    """Plan, measure what is left, write."""
    parser = script_parser(__doc__)
    parser.add_argument("--models", default="carv-tiny", help="folders, hub ids or carv-tiny, joined by commas")
    parser.add_argument("--hours", type=float, default=8.0, help="in which all of it ends")
    parser.add_argument("--work", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--draws", type=whole_numbers, default=(1, 2, 4, 8, 16, 32), help="K, joined by commas")
    parser.add_argument("--prompts", type=int, default=5, help="of the convergence")
    parser.add_argument("--parts", default=",".join(SHARES), help="which, joined by commas")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    o = parser.parse_args()
    names = o.parts.split(",")
    if not 0 < o.hours <= 10_000 or not o.draws or not 1 <= o.prompts <= 5 or not set(names) <= set(SHARES):
        raise CarvError(f"--hours must be above 0, --prompts 1 to 5, --parts of {', '.join(SHARES)}")
    until = time.time() + 3600 * o.hours
    plan = Plan(o.draws, o.prompts, tuple(o.overrides))
    parts = [Part(model, name) for model in find_models(o.models.split(",")) for name in SHARES if name in names]
    with claimed(o.work):
        for i, part in enumerate(parts):
            if part.file(o.work).exists():
                continue
            left = [p for p in parts[i:] if not p.file(o.work).exists()]
            seconds = seconds_for(part, left, until)
            print(f"{part.model}: {part.name}, {seconds:.0f} s; {len(left)} parts are left", file=sys.stderr)
            result = measure(part, plan, seconds, o.work)
            write_atomic(part.file(o.work), json.dumps(result))
            write(parts, o.work)
        write(parts, o.work)
    print((o.work / "gpu.md").read_text())


if __name__ == "__main__":
    run_script(main)
