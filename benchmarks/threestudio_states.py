"""Every guidance type in the real threestudio: a run that is resumed, and a run on two ranks (gloo), on a CPU.

    PYTHON benchmarks/threestudio_states.py CHECKOUT [--types KIND,...] [--out docs/results/threestudio-states.csv]

PYTHON has threestudio's packages. Each type runs in a stock configuration whose guidance is replaced, with tiny models
(`benchmarks/threestudio_configs.py`): three steps, then the checkpoint is resumed for three more; and three steps on
two processes, whose scenes must have equal parameters afterwards. MVDream's type is tried where CARV_MVDREAM and
CARV_THREESTUDIO_MVDREAM name its checkouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real_host")]

import mvdream_tiny  # noqa: E402
from bench import joined, replace_rows, run_script, script_parser  # noqa: E402
from threestudio_configs import packages, read, reason, small_words  # noqa: E402

from carv_3d.hosts.stock import with_counterparts  # noqa: E402

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
    "mvdream-multiview-diffusion-guidance": "mvdream-sd21",
}  # fmt: skip
"""A stock configuration of each type; that of MVDream is in threestudio-mvdream."""


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
    if "mvdream" in file.stem:
        mvdream_tiny.install()
        mvdream_tiny.link(workdir)
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


def due(words: list[str]) -> list[int]:
    """Lightning's global step after each of the batches; a system with two optimizers makes two steps a batch."""
    limits = [int(word.partition("=")[2]) for word in words if word.startswith("trainer.max_steps=")]
    each = limits[-1] // STEPS if limits else 1
    return [each * batch for batch in range(1, STEPS + 1)]


def resumed(checkout: Path, file: Path, workdir: Path, words: list[str]) -> str:
    """What came of three batches, and of three more from their checkpoint."""
    last = due(words)[-1]
    kept = [*words, f"checkpoint.every_n_train_steps={last}", "use_timestamp=false"]
    lines, why = start(checkout, file, workdir, kept)
    saved = sorted(workdir.rglob("last.ckpt"))
    if why and not saved:
        return f"no: {why}"
    if not saved:
        return "no: no checkpoint was written"
    lines, why = start(checkout, file, workdir, [*kept, f"resume={saved[0]}", f"trainer.max_steps={2 * last}"])
    steps = [line["step"] for line in lines]
    made = [last + step for step in due(words)]
    return f"steps {last + 1} to {made[-1]}" if steps == made else f"no: {why or f'steps {steps}'}"


def on_two_ranks(checkout: Path, file: Path, workdir: Path, words: list[str]) -> str:
    """What came of three batches on two processes."""
    lines, why = start(checkout, file, workdir, words, CARV_TEST_DEVICES="2")
    by_rank = [[line for line in lines if line["rank"] == rank] for rank in (0, 1)]
    if any([line["step"] for line in each] != due(words) for each in by_rank):
        return f"no: {why or 'a rank made other steps'}"
    ends = [each[-1].get("parameters") for each in by_rank]
    if ends[0] is None:
        return f"steps 1 to {due(words)[-1]}"
    return f"steps 1 to {due(words)[-1]}, equal parameters" if ends[0] == ends[1] else f"no: parameters {ends}"


def row(kind: str, checkout: Path, folder: Path) -> dict[str, str]:
    """Of one type."""
    root = mvdream_tiny.extension() if kind == mvdream_tiny.KIND else checkout
    file = root / "configs" / f"{CONFIGS[kind]}.yaml"
    _, words = small_words(read(file), with_counterparts(file, []), folder / "models")
    return {
        "type": kind, "config": CONFIGS[kind], "packages": packages(),
        "resume": resumed(checkout, file, folder / kind / "resume", words),
        "two ranks": on_two_ranks(checkout, file, folder / kind / "ranks", words),
    }  # fmt: skip


def main() -> None:
    """A row for each type, in the file after each; the rows of other types stay."""
    types = [kind for kind in CONFIGS if kind != mvdream_tiny.KIND or mvdream_tiny.here()]
    parser = script_parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--types", type=joined(CONFIGS), default=",".join(types))
    parser.add_argument("--out", type=Path, default=Path("docs/results/threestudio-states.csv"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    o, words = parser.parse_known_args()
    if o.child:
        child(o.checkout, Path(o.child[0]), Path(o.child[1]), [*o.child[2:], *words])
        return
    import cpu_host

    cpu_host.enter(o.checkout)  # the tiny models of some types are made by its classes
    out, order = o.out.resolve(), list(CONFIGS)
    with tempfile.TemporaryDirectory() as folder:
        for kind in o.types:
            made = row(kind, o.checkout.resolve(), Path(folder))
            print(", ".join(made.values()), flush=True)
            replace_rows(out, COLUMNS, [made], ("type", "packages"), lambda each: order.index(each["type"]))


if __name__ == "__main__":
    run_script(main)
