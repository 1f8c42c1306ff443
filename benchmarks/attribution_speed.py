"""How fast are gradients for attribution? carv-tiny's UNet, the same items and draws by every path, interleaved.

A round makes the features of --items items by each path: all parameters by autograd, an item at a time (the only path
of version 0.1.0), and the layers of each word of --parameters through hooks. Next to them the roofline, on batches of
the same draws: the UNet's forward alone, and its forward and backward without any weight. Seconds are the process's
CPU seconds on one thread, which other work on the machine disturbs less than the clock's. Then the memory that the
process has held after --few and after --many items of one store.

    ./install.sh python benchmarks/attribution_speed.py [--rounds 5] [--items 8] [--draws 4] [--dim 2048]
        [--parameters layers,cross-attention] [--out docs/results/attribution-speed.csv]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import interleaved, joined, run_script, script_parser, show_table
from torch import Tensor

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions
from carv_3d.attribution.features import BATCH
from carv_3d.attribution.parameter_names import PARAMETERS
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

HEAD = ["path", "milliseconds a draw", "items a second", "times as fast as all", "megabytes at few", "at many items"]


class Noise:
    """Items of noise with one caption: their gradients cost what any others do."""

    def __init__(self, count: int, teacher: StableDiffusionTeacher) -> None:
        self.z = torch.randn(count, 4, teacher.latent_size, teacher.latent_size)
        self.text = teacher.text_embeddings(["a red mug, left view"])[0]

    def __len__(self) -> int:
        return len(self.z)

    def key(self, index: int) -> str:
        return f"noise-{index}"

    def latents(self, index: int) -> Tensor:
        return self.z[index]

    def condition(self, index: int) -> Tensor:
        return self.text

    def fingerprint(self) -> str:
        return f"noise {len(self)}"


def network(teacher: StableDiffusionTeacher, items: Noise, rows: int, backward: bool) -> Callable[[], None]:
    """The UNet on `rows` draws in batches; with its backward, down to its input."""

    def call() -> None:
        for begin in range(0, rows, BATCH):
            n = min(BATCH, rows - begin)
            z = torch.randn(n, *items.z.shape[1:], requires_grad=backward)
            with torch.set_grad_enabled(backward):
                out = teacher.predict(z, torch.randint(0, 1000, (n,)), items.text.expand(n, -1, -1))
                if backward:
                    torch.autograd.grad(out.square().mean(), z)

    return call


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        begin = time.process_time()
        call()
        return time.process_time() - begin

    return run


def features(maker: FeatureMaker, items: Noise, count: int) -> Callable[[], None]:
    def call() -> None:
        for begin in range(0, count, maker.batch):
            batch = range(begin, min(begin + maker.batch, count))
            latents, texts = [items.latents(i) for i in batch], [items.condition(i) for i in batch]
            maker.features([items.key(i) for i in batch], latents, texts)

    return call


def held(maker: FeatureMaker, teacher: StableDiffusionTeacher, count: int) -> float:
    """MiB that the process has ever held after a store of `count` items was filled."""
    items = Noise(count, teacher)
    with tempfile.TemporaryDirectory() as folder:
        maker.fill(maker.open_store(Path(folder) / "store", items), items)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(o: argparse.Namespace) -> list[tuple[Any, ...]]:
    """The rows of the table."""
    torch.set_num_threads(1)
    teacher = StableDiffusionTeacher.load(o.model)
    model, items = GradientModel.from_teacher(teacher), Noise(o.items, teacher)
    draws = GroupedDrawOptions(num_draws=o.draws)
    makers = {
        word: FeatureMaker(model, FeatureOptions(draws=draws, dim=o.dim, parameters=word))
        for word in ["all", *o.parameters]
    }
    calls = {word: timed(features(maker, items, o.items)) for word, maker in makers.items()}
    rows = o.items * o.draws
    calls["the UNet forward alone"] = timed(network(teacher, items, rows, False))
    calls["forward and backward alone"] = timed(network(teacher, items, rows, True))
    for call in calls.values():
        call()
    seconds = {name: statistics.median(times) for name, times in interleaved(calls, o.rounds).items()}
    table: list[tuple[Any, ...]] = []
    for name, spent in seconds.items():
        memory = ["", ""]
        if name in o.parameters:
            memory = [f"{held(makers[name], teacher, count):.0f}" for count in (o.few, o.many)]
        times = f"{seconds['all'] / spent:.2f}"
        table.append((name, f"{1e3 * spent / rows:.1f}", f"{o.items / spent:.2f}", times, *memory))
    return table


def main() -> None:
    """The table."""
    parser = script_parser(__doc__, rounds=5, items=8, draws=4, dim=2048, few=32, many=160)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--parameters", type=joined(PARAMETERS), default=["layers", "attention", "cross-attention"])
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    show_table(HEAD, measure(o), o.out)


if __name__ == "__main__":
    run_script(main)
