"""Every guidance type in the real threestudio: a run that is resumed, and a run on two ranks (gloo), on a CPU.

    PYTHON benchmarks/threestudio_states.py CHECKOUT [--types KIND,...] [--out docs/results/threestudio-states.csv]

PYTHON has threestudio's packages. Each type runs in a stock configuration whose guidance is replaced, with tiny models
(`benchmarks/threestudio_configs.py`): three steps, then the checkpoint is resumed for three more; and three steps on
two processes, whose scenes must have equal parameters afterwards.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import joined, run_script, script_parser
from threestudio_configs import packages, read, reason, small_words

from carv_3d.hosts.stock import with_counterparts

STEPS, LIMIT = 3, 400
COLUMNS = ("type", "config", "packages", "resume", "two ranks")
CONFIGS = {
    "stable-diffusion-guidance": "dreamfusion-sd", "stable-diffusion-vsd-guidance": "prolificdreamer",
    "stable-diffusion-unified-guidance": "experimental/unified-guidance/dreamfusion-sd",
    "stable-diffusion-sdi-guidance": "sdi", "deep-floyd-guidance": "dreamfusion-if",
    "stable-diffusion-instructpix2pix-guidance": "instructnerf2nerf",
    "stable-diffusion-controlnet-guidance": "control4d-static", "zero123-guidance": "zero123",
    "stable-zero123-guidance": "stable-zero123",
    "zero123-unified-guidance": "experimental/unified-guidance/zero123-simple",
}  # fmt: skip
"""A stock configuration of each type."""


def child(checkout: Path, file: Path, workdir: Path, words: list[str]) -> None:
    """threestudio's launcher on a configuration, in this process; a second rank is started by the same words."""
    import cpu_host
    from host_models import without_vgg

    torch.set_num_threads(1)
    cpu_host.enter(checkout)
    without_vgg()
    if "zero123" in file.stem:
        import ldm_tiny

        ldm_tiny.install()  # in place of OpenAI's clip and kornia
    cpu_host.train(checkout, file, STEPS, workdir, words, small=[])


def start(
    checkout: Path, file: Path, workdir: Path, words: list[str], **variables: str
) -> tuple[list[dict[str, Any]], str]:
    """(the lines of its steps, "" or why it ended) of a run in a process of its own."""
    command = [sys.executable, __file__, str(checkout), "--child", str(file), str(workdir), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return [], f"ran for more than {LIMIT} s"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, "" if done.returncode == 0 else reason(done.stderr)


def resumed(checkout: Path, file: Path, workdir: Path, words: list[str]) -> str:
    """What came of three steps, and of three more from their checkpoint."""
    kept = [*words, f"checkpoint.every_n_train_steps={STEPS}", "use_timestamp=false"]
    lines, why = start(checkout, file, workdir, kept)
    saved = sorted(workdir.rglob("last.ckpt"))
    if why and not saved:
        return f"no: {why}"
    if not saved:
        return "no: no checkpoint was written"
    lines, why = start(checkout, file, workdir, [*kept, f"resume={saved[0]}", f"trainer.max_steps={2 * STEPS}"])
    steps = [line["step"] for line in lines]
    due = list(range(STEPS + 1, 2 * STEPS + 1))
    return f"steps {due[0]} to {due[-1]}" if steps == due else f"no: {why or f'steps {steps}'}"


def on_two_ranks(checkout: Path, file: Path, workdir: Path, words: list[str]) -> str:
    """What came of three steps on two processes."""
    lines, why = start(checkout, file, workdir, words, CARV_TEST_DEVICES="2")
    by_rank = [[line for line in lines if line["rank"] == rank] for rank in (0, 1)]
    if any([line["step"] for line in each] != list(range(1, STEPS + 1)) for each in by_rank):
        return f"no: {why or 'a rank made other steps'}"
    ends = [each[-1].get("parameters") for each in by_rank]
    if ends[0] is None:
        return "steps 1 to 3"
    return "steps 1 to 3, equal parameters" if ends[0] == ends[1] else f"no: parameters {ends}"


def row(kind: str, checkout: Path, folder: Path) -> dict[str, str]:
    """Of one type."""
    file = checkout / "configs" / f"{CONFIGS[kind]}.yaml"
    _, words = small_words(read(file), with_counterparts(file, []), folder / "models")
    return {
        "type": kind, "config": CONFIGS[kind], "packages": packages(),
        "resume": resumed(checkout, file, folder / kind / "resume", words),
        "two ranks": on_two_ranks(checkout, file, folder / kind / "ranks", words),
    }  # fmt: skip


def main() -> None:
    """A row for each type; the file is written anew after each."""
    parser = script_parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--types", type=joined(CONFIGS), default=",".join(CONFIGS))
    parser.add_argument("--out", type=Path, default=Path("docs/results/threestudio-states.csv"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    o, words = parser.parse_known_args()
    if o.child:
        child(o.checkout, Path(o.child[0]), Path(o.child[1]), [*o.child[2:], *words])
        return
    import cpu_host

    cpu_host.enter(o.checkout)  # the tiny models of some types are made by its classes
    out, rows = o.out.resolve(), []
    with tempfile.TemporaryDirectory() as folder:
        for kind in o.types:
            rows.append(row(kind, o.checkout.resolve(), Path(folder)))
            print(", ".join(rows[-1].values()), flush=True)
            with out.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    run_script(main)
