"""The README followed word by word in a fresh clone: each block is run as it stands, and the first that fails ends it.

The clone has an environment of HOME, PATH and the package index alone. What the README promises of a run must be there.
Commands with a placeholder (PATH/TO/threestudio), and those in threestudio's folder, are run where --threestudio gives
the checkout, and listed else.

    python benchmarks/newcomer.py [--threestudio CHECKOUT] [--out docs/results/newcomer.csv]
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("HOME", "PATH", "PIP_", "HTTPS_PROXY", "https_proxy", "SSL_CERT", "CARV_TORCH", "ONEDNN_MAX_CPU_ISA")
PLACEHOLDER = "PATH/TO/threestudio"
STAND_INS = """
import torch

theta = torch.full((2, 4, 8, 8), 3.0, requires_grad=True)
render = lambda theta: theta
encode = lambda image: 0.5 * image
transformer = lambda z, time: z
eps_hat = lambda z_t, t: 0.5 * z_t
"""  # what the README says is the reader's own


@dataclass(frozen=True)
class Block:
    """A command, or the Python between two fences."""

    kind: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What came of a block. seconds: None where it was not run."""

    block: Block
    state: str
    seconds: float | None


def blocks(readme: str) -> list[Block]:
    """The README's commands and Python, in order. A comment behind a command is left out, as a shell does."""
    parts = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```|^ {4}(\S[^\n]*)$", readme, re.M | re.S):
        language, code, line = match.groups()
        if line is not None:
            parts.append(Block("sh", line.split("    #")[0].strip()))
        elif language == "python":
            parts.append(Block("python", code))
        elif language in ("sh", "bash"):
            parts += [Block("sh", part.strip()) for part in code.replace("\\\n", "").splitlines() if part.strip()]
    return parts


def promised(readme: str) -> list[Path]:
    """The files that the README says the first run leaves."""
    sentence = re.search(r"leaves\s+`(outputs/[^`]+)/` with (.*?),? after", readme, re.S)
    assert sentence is not None, "the README no longer says what the first command leaves"
    return [Path(sentence[1]) / name for name in re.findall(r"`([\w.]+)`", sentence[2])]


def run_blocks(clone: Path, readme: str, checkout: Path | None) -> list[Outcome]:
    """Each block in the clone, up to the first that fails."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    outcomes, python = [], STAND_INS
    for block in blocks(readme):
        words, folder = block.text, clone
        if block.kind == "python":
            python += block.text
            command = ["./install.sh", "python", "-c", python]
        else:
            if (PLACEHOLDER in words or words.startswith("carv threestudio")) and checkout is None:
                outcomes.append(Outcome(block, "not run: no threestudio checkout was given", None))
                continue
            if words.startswith("carv threestudio"):
                folder = checkout or clone
            command = ["bash", "-c", words.replace(PLACEHOLDER, str(checkout))]
        print(f"$ {words if block.kind == 'sh' else 'python: ' + words.splitlines()[0]}", flush=True)
        begin = time.perf_counter()
        status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        outcomes.append(Outcome(block, "passed" if status == 0 else f"status {status}", time.perf_counter() - begin))
        if status:
            break
    return outcomes


def write(path: Path, outcomes: list[Outcome], first: float, commit: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["block", "state", "seconds"])
        for outcome in outcomes:
            title = outcome.block.text.splitlines()[0] if outcome.block.kind == "sh" else "python"
            table.writerow([title, outcome.state, "" if outcome.seconds is None else f"{outcome.seconds:.0f}"])
        table.writerow(["clone to first preview.png", commit, f"{first:.0f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threestudio", type=Path, help="a checkout, whose environment is active")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "newcomer.csv")
    o = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    clone, begin = folder / "carv_3d", time.time()
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        commit = subprocess.check_output(["git", "-C", str(clone), "rev-parse", "--short", "HEAD"], text=True).strip()
        readme = (clone / "README.md").read_text(encoding="utf-8")
        outcomes = run_blocks(clone, readme, o.threestudio)
        missing = [str(path) for path in promised(readme) if not (clone / path).exists()]
        preview = clone / promised(readme)[0].parent / "preview.png"
        first = preview.stat().st_mtime - begin if preview.exists() else float("nan")
        write(o.out, outcomes, first, commit)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for outcome in outcomes:
        print(f"{outcome.state:<12} {outcome.block.text.splitlines()[0]}")
    for path in missing:
        print(f"missing      {path}")
    print(f"from clone to first image: {first:.0f} s")
    return int(bool(missing) or any(x.state.startswith("status") for x in outcomes))


if __name__ == "__main__":
    sys.exit(main())
