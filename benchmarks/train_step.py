"""Seconds of a training step of carv-tiny's denoiser: forward, backward and optimizer, interleaved in one run.

In float32, with bfloat16 products, and with those compiled; with the cosine of each gradient with float32's.

    ./install.sh python benchmarks/train_step.py [--batch 64] [--repeats 9] [--threads 2]
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings

import torch
from bench import interleaved, script_parser

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.tiny import denoiser
from carv_3d.tiny.quick import compile_in_place, loss_gradient
from carv_3d.tiny.stage import FUSED
from carv_3d.tiny.tokens import LENGTH

VOCABULARY = 600  # about as many tokens as carv-tiny has; it changes no time


class Side:
    """One way to take a step, from the same weights on the same batch as the others."""

    def __init__(self, batch: int, autocast: bool, compiled: bool, fused: bool | None):
        torch.manual_seed(0)
        self.model = denoiser.Denoiser(VOCABULARY, 0, 1, autocast=autocast)
        self.model.unet.to(memory_format=torch.channels_last)
        self.schedule, generator = NoiseSchedule.scaled_linear(), torch.Generator().manual_seed(1)
        self.z = torch.randn(batch, 4, 16, 16, generator=generator).contiguous(memory_format=torch.channels_last)
        self.ids = torch.randint(VOCABULARY, (batch, LENGTH), generator=generator)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=fused)
        self.works = not compiled or compile_in_place(self.model.unet, self.gradient, print)
        self.first = torch.cat([g.flatten() for g in self.gradient()]).double()

    def loss(self) -> torch.Tensor:
        return denoiser.loss(self.model, self.schedule, self.z, self.ids, torch.Generator().manual_seed(2))

    def gradient(self) -> list[torch.Tensor]:
        return loss_gradient(self.model, self.loss)

    def seconds(self) -> float:
        begun = time.perf_counter()
        self.gradient()
        self.optimizer.step()
        return time.perf_counter() - begun


def main() -> None:
    options = script_parser(__doc__, batch=64, repeats=9, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    sides = {
        "float32, as before": Side(options.batch, autocast=False, compiled=False, fused=None),
        "float32, fused Adam": Side(options.batch, autocast=False, compiled=False, fused=FUSED),
        "bfloat16 products": Side(options.batch, autocast=True, compiled=False, fused=FUSED),
        "bfloat16 products, compiled": Side(options.batch, autocast=True, compiled=True, fused=FUSED),
    }
    taken = interleaved({name: side.seconds for name, side in sides.items()}, options.repeats)
    reference = next(iter(sides))
    print("| a step | ms | of the first | cosine of the gradient with the first's |\n|---|---|---|---|")
    for name, side in sides.items():
        ms = [1e3 * statistics.median(taken[n]) for n in (name, reference)]
        cosine = torch.cosine_similarity(side.first, sides[reference].first, dim=0).item()
        print(f"| {name}{'' if side.works else ' (not compiled)'} | {ms[0]:.0f} | {ms[0] / ms[1]:.2f} | {cosine:.4f} |")


if __name__ == "__main__":
    main()
