"""Every configuration of a threestudio checkout, three steps with its guidance replaced, in the real host on a CPU.

    PYTHON benchmarks/threestudio_configs.py CHECKOUT [--only WORD] [--out docs/results/threestudio-configs.csv]
    PYTHON benchmarks/threestudio_configs.py CHECKOUT --facts    guidance types and names of options, for the tests

PYTHON has threestudio's packages. Models have random weights and are tiny, renders have 16 x 16 pixels, meshes are
rasterized in torch (tests/real_host/software_raster.py). Where ours fails the stock configuration runs the same way.
A row is (configuration, packages); rows of other packages in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "real_host"), str(ROOT / "tests" / "extension")]

import torch  # noqa: E402
from bench import replace_rows  # noqa: E402
from host_models import fitted, for_ours, without_vgg  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from small_config import small  # noqa: E402

from carv_3d.hosts.stock import CarvConfig, with_counterparts  # noqa: E402
from carv_3d.io.structured import look_up  # noqa: E402

COLUMNS = ("config", "packages", "guidance", "replaced by", "K", "steps", "result", "stock")
STEPS, LIMIT = 3, 400
FACTS = ROOT / "tests" / "hosts" / "threestudio_configs.json"
NOT_HERE = {
    "data.root_dir": "needs a CO3D sequence, which is not in the repository",
}
ENDS = (
    (r"read_obj is a stand-in", "needs the package igl"),
    (r"(\w+) is a stand-in: this needs the real package", r"CUDA only: \1"),
    (r"No module named '(\w+)'", r"needs the package \1"),
)


def packages() -> str:
    """The versions that matter."""
    import diffusers

    return f"torch {torch.__version__.partition('+')[0]}, diffusers {diffusers.__version__}"


def read(file: Path) -> dict[str, Any]:
    """A configuration, its `${...}` unresolved."""
    config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def guidances(config: Mapping[str, Any]) -> dict[str, str]:
    """Of the system: the groups of guidances, and their types."""
    types = {key: kind for key, kind in config["system"].items() if re.fullmatch(r"guidance\w*_type", key)}
    return {key.removesuffix("_type"): kind for key, kind in types.items()}


def facts(checkout: Path) -> dict[str, Any]:
    """Of each configuration: its guidance types, and the names of the options that each is given."""
    out = {}
    for file in sorted((checkout / "configs").rglob("*.yaml")):
        config = read(file)
        named = {
            group: {"type": kind, "options": sorted(config["system"].get(group) or {})}
            for group, kind in guidances(config).items()
        }
        out[str(file.relative_to(checkout / "configs").with_suffix(""))] = named
    return out


def attempt(checkout: Path, file: Path, words: list[str], folder: Path) -> tuple[int, int, str]:
    """(steps, of those with a guidance, "" or why it ended) of a run in a process of its own."""
    folder.mkdir(parents=True)
    shown, log = folder / "stdout", folder / "stderr"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            for target, path in ((1, shown), (2, log)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), target)
            import cpu_host

            sys.argv = ["launch.py"]
            cpu_host.train(checkout, file, STEPS, folder / "run", words, small=[])
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + LIMIT
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 0, 0, f"ran for more than {LIMIT} s"
        time.sleep(0.2)
    lines = [json.loads(line) for line in shown.read_text().splitlines() if line.startswith("{")]
    guided = sum(bool(line["calls"]) for line in lines)
    return len(lines), guided, "" if ended[1] == 0 else reason(log.read_text(errors="replace"))


def reason(log: str) -> str:
    """The last exception of a log, in a few words."""
    if "nerfacc/cuda/_backend.py" in log:
        return "CUDA only: nerfacc's importance sampling"
    last = [line for line in log.splitlines() if re.match(r"[\w.]+(Error|Exception|Missing\w*)\b", line)]
    sentence = last[-1] if last else log.strip().splitlines()[-1] if log.strip() else "no word"
    for pattern, words in ENDS:
        match = re.search(pattern, sentence)
        if match:
            return match.expand(words)
    return sentence.rpartition("Error: ")[2][:200] if "CarvError" in sentence else sentence[:200]


def small_words(config: Mapping[str, Any], made: CarvConfig, models: Path) -> tuple[list[str], list[str]]:
    """key=value that make a stock configuration fit a CPU, with tiny models; and those of the one with counterparts."""
    shrunk = [*small(config), *fitted(config, models)]
    return shrunk, [*shrunk, *for_ours(config, models), *made.words]


def run(checkout: Path, file: Path, models: Path, scratch: Path) -> dict[str, Any]:
    """A row."""
    config, name = read(file), str(file.relative_to(checkout / "configs").with_suffix(""))
    row = dict.fromkeys(COLUMNS, "") | {"config": name, "packages": packages(), "steps": 0}
    row["guidance"] = " + ".join(guidances(config).values())
    made = with_counterparts(file, [])
    row["replaced by"] = " + ".join(guidances(made.config).values())
    row["K"] = " + ".join(line.rpartition("= ")[2] for line in made.lines if ", K = " in line)
    missing = [why for key, why in NOT_HERE.items() if look_up(config, key) == "???"]
    if "system_type" not in config:
        return row | {"result": "no system_type: it is no configuration for the launcher", "stock": "the same"}
    if missing:
        return row | {"result": missing[0], "stock": "the same"}
    shrunk, ours = small_words(config, made, models)
    if "carv-" not in row["replaced by"]:
        result = (0, 0, "no counterpart yet")
    else:
        result = attempt(checkout, file, ours, scratch / "carv")
    row |= {"steps": result[0], "result": summary(*result)}
    if result[2] or result[1] < STEPS:
        row["stock"] = summary(*attempt(checkout, file, shrunk, scratch / "stock"))
    return row


def summary(steps: int, guided: int, why: str) -> str:
    """What is written of an attempt."""
    if why:
        return why if steps < STEPS else f"{steps} steps, then: {why}"
    return f"{steps} steps" if guided == steps else f"{steps} steps, {guided} of them with guidance"


def write(path: Path, row: Mapping[str, Any]) -> None:
    """The row in the file, in place of the one of the same configuration and packages."""
    replace_rows(path, COLUMNS, [row], ("config", "packages"), lambda each: (each["packages"], each["config"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", default="", help="of configurations whose name contains it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "threestudio-configs.csv")
    parser.add_argument("--facts", action="store_true", help="write the facts, and run nothing")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and models (default: a temporary one)")
    args = parser.parse_args()
    checkout = args.checkout.resolve()
    if args.facts:
        lines = (f" {json.dumps(name)}: {json.dumps(each)}" for name, each in facts(checkout).items())
        FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    torch.set_num_threads(1)
    import cpu_host

    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).resolve()
        os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        cpu_host.enter(checkout)
        without_vgg()
        for file in sorted((checkout / "configs").rglob("*.yaml")):
            name = str(file.relative_to(checkout / "configs").with_suffix(""))
            if args.only in name:
                row = run(checkout, file, folder / "models", folder / "runs" / name)
                write(args.out, row)
                print(f"{name}: {row['result']}" + f"; stock: {row['stock']}" * bool(row["stock"]), flush=True)


if __name__ == "__main__":
    main()
