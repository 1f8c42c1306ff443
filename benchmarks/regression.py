"""Whether a version gives the numbers of another to the last bit, on small settings with fixed seeds.

    PYTHONPATH=CHECKOUT_OF_THE_OTHER python benchmarks/regression.py record --out before.json
    python benchmarks/regression.py record --out after.json
    python benchmarks/regression.py compare before.json after.json

A case calls a command or the library as a user does. Of each of its results it keeps a digest of all bits, and the
norm, the sum and a few values, by which results of other machines are compared. `tests/regression/baseline.json` was
recorded at 42e1110, before the packages; `tests/test_regression.py` runs the cases on today's code. A result that is
changed on purpose has its reason there, under `changed`, and today's value.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import random
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numba
import numpy as np
import regression_library  # noqa: F401  registers its cases
import torch
from regression_cases import CASES
from torch import Tensor

RELATIVE = 1e-4  # how far results of another machine may be apart
Result = list[Any]  # digest, how many numbers, norm, sum, the first three


def environment() -> dict[str, str]:
    """What bits depend on besides the code."""
    return {
        "torch": torch.__version__,
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {processor()}",
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def processor() -> str:
    """Whose it is: libraries of linear algebra take other paths on others' processors."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    named = [facts[key] for key in ("vendor_id", "cpu family", "model") if key in facts]
    return " ".join(named) or platform.processor() or platform.machine()


def run_case(name: str, folder: Path) -> dict[str, Result]:
    """The results of a case by name; it works in `folder`, on one thread, with global generators that begin anew."""
    here, threads, cache = Path.cwd(), torch.get_num_threads(), os.environ.get("CARV_CACHE")
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["CARV_CACHE"] = str(folder / "cache")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  whatever still reads it begins alike
            random.seed(0)
            return {key: result(value) for key, value in CASES[name].run().items()}
    finally:
        os.chdir(here)
        torch.set_num_threads(threads)
        os.environ.pop("CARV_CACHE")
        os.environ.update({} if cache is None else {"CARV_CACHE": cache})


def result(value: Any) -> Result:
    """What is kept of a number, an array, a tensor, text, or any nest of them."""
    digest, numbers = hashlib.sha256(), []
    for name, leaf in leaves(value):
        digest.update(name.encode())
        if isinstance(leaf, str):
            digest.update(leaf.encode())
            continue
        array = leaf.detach().cpu().contiguous().numpy() if isinstance(leaf, Tensor) else np.asarray(leaf)
        digest.update(f"{array.dtype.kind}{array.dtype.itemsize}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        if array.dtype != np.uint8 or array.ndim > 1:  # states of generators say nothing about size
            numbers.append(array.astype(np.float64).reshape(-1))
    flat = np.concatenate(numbers) if numbers else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    kept = [float(np.linalg.norm(flat)), float(flat.sum()), *map(float, flat[:3])]
    return [digest.hexdigest()[:16], len(flat), *(float(f"{x:.8g}") for x in kept)]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The ends of a nest with their names, in the names' order; None counts as text."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from leaves(value[key], f"{name}/{key}")
    elif isinstance(value, (list, tuple)) and not all(isinstance(v, (int, float)) for v in value):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}/{i}")
    else:
        yield name, "None" if value is None else value


def differences(old: Mapping[str, Result], new: Mapping[str, Result], exact: bool = True) -> list[str]:
    """The results of a case that differ: in any bit, or else by more than `RELATIVE` of their norm."""
    out = [f"{name} is missing" for name in old if name not in new]
    out += [f"{name} was not there" for name in new if name not in old]
    for name in sorted(set(old) & set(new)):
        same = old[name][:2] == new[name][:2] if exact else _near(old[name], new[name])
        if not same:
            out.append(f"{name} was {old[name]} and is {new[name]}")
    return out


def expected(recorded: Mapping[str, Any], name: str) -> dict[str, Result]:
    """The results of a case in a recording, with today's for those that were changed on purpose."""
    changed = recorded.get("changed", {}).get(name, {})
    return recorded["cases"].get(name, {}) | {result: change["now"] for result, change in changed.items()}


def _near(old: Result, new: Result) -> bool:
    if old[1] != new[1]:
        return False
    scale = RELATIVE * max(abs(old[2]), abs(new[2]))
    return all(
        math.isclose(a, b, rel_tol=RELATIVE, abs_tol=scale * (math.sqrt(old[1]) if place == 1 else 1))
        or (math.isnan(a) and math.isnan(b))
        for place, (a, b) in enumerate(zip(old[2:], new[2:]))
    )


def record(names: list[str]) -> dict[str, Any]:
    """The results of these cases, and where they were recorded; a case that fails is left out, with a note."""
    cases: dict[str, dict[str, Result]] = {}
    for name in names:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            try:
                cases[name] = run_case(name, Path(folder))
            except Exception:  # the other cases are still worth having
                traceback.print_exc()
        print(f"{time.perf_counter() - begin:6.2f} s  {len(cases.get(name, ())):3d} results  {name}", flush=True)
    return {"environment": environment(), "cases": cases}


def written(recorded: dict[str, Any]) -> str:
    """JSON with one result on a line."""
    cases = {
        case: ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in results.items())
        for case, results in recorded["cases"].items()
    }
    body = ",\n".join(f"{json.dumps(case)}: {{\n{lines}\n}}" for case, lines in cases.items())
    head = "".join(f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in recorded.items() if k != "cases")
    return f'{{{head}"cases": {{\n{body}\n}}}}\n'


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what differs between two recordings; returns how many cases do."""
    exact = old["environment"] == new["environment"]
    if not exact:
        print(f"recorded on {old['environment']} and {new['environment']}: compared to {RELATIVE:g} of each norm")
    bad = 0
    for name in old["cases"]:
        for result_name, change in old.get("changed", {}).get(name, {}).items():
            print(f"changed  {name}: {result_name}. {change['reason']}")
        differing = differences(expected(old, name), new["cases"].get(name, {}), exact)
        bad += bool(differing)
        print(f"{'DIFFERS' if differing else 'equal  '}  {name}")
        for line in differing[:12]:
            print(f"           {line}")
    print(f"{len(old['cases']) - bad} of {len(old['cases'])} cases equal")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the cases of the version that is imported")
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--only", default="", help="cases whose names hold this")
    comparing = commands.add_parser("compare", help="what differs between two recordings")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        return min(1, compare(json.loads(args.old.read_text()), json.loads(args.new.read_text())))
    recorded = record([name for name in CASES if args.only in name])
    args.out.write_text(written(recorded))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
