"""One-step distillation of a teacher that is known exactly: W2 to it, with one draw a sample and with sixteen.

    ./install.sh python benchmarks/distill_gaussian.py [--seeds 3] [--budget 40] [--methods K1,K16] [--work DIR]

The teacher is a ring of eight Gaussians in the plane. A small network learns its denoising first; generator and fake
score begin as copies of it, as they do of a Stable Diffusion. All methods run interleaved for the same seconds of their
own steps. W2 is exact, between samples of the generator and of the mixture. Stop it whenever you like: the same
command resumes.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from bench import run_script, trial_options
from distill_trials import METHODS, equal_table, make_trials, read_off, run_trials
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.distill.loop import Distillation
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import ListedPrompts
from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import wasserstein
from carv_3d.teachers.gaussian import GaussianTeacher

MODES, STD = 8, 0.1


class Mlp(nn.Module):
    """v of points in the plane, (N, 2, 1, 1), called as a UNet is; the noise level goes in as log(sigma / alpha)."""

    def __init__(self, schedule: NoiseSchedule, width: int = 128) -> None:
        super().__init__()
        T = torch.arange(schedule.num_train_timesteps)
        self.register_buffer("level", (schedule.sigma(T) / schedule.alpha(T)).log() / 4, persistent=False)
        layers = [m for n in (2 + 9, width, width) for m in (nn.Linear(n, width), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        level = self.level[t]
        waves = [f(math.pi * 2**i * level) for i in range(4) for f in (torch.sin, torch.cos)]
        return (self.net(torch.cat([z_t.flatten(1), torch.stack([level, *waves], 1)], 1)).view_as(z_t),)


def pretrain(teacher: GaussianTeacher, steps: int) -> Mlp:
    """The network that predicts what the teacher does, at every noise level."""
    torch.manual_seed(0)
    net, schedule, text = Mlp(teacher.schedule), teacher.schedule, teacher.text_embeddings([""]).expand(512, -1, -1)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z, t = teacher.sample(text), torch.randint(schedule.num_train_timesteps, (512,))
        z_t = schedule.add_noise(z, torch.randn_like(z), t)
        eps = teacher.eps_hat(z_t, t, text)
        target = schedule.target("v_prediction", schedule.z_from("epsilon", z_t, eps, t), eps, t)
        loss = (net(z_t, t, text)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return net


def main() -> int:
    parser = trial_options(__doc__, METHODS, budget=40.0, points=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fake-lr", type=float, default=2e-3)
    parser.add_argument("--fake-updates", type=int, default=2)
    parser.add_argument("--objective", default="dmd", choices=("dmd", "kl"))
    parser.add_argument("--samples", type=int, default=1000, help="of either side in W2")
    parser.add_argument("--pretrain", type=int, default=4000, help="steps of the network before distillation")
    parser.add_argument("--work", type=Path, default=Path("outputs/distill-gaussian"))
    o = parser.parse_args()
    if not 0 < o.budget < math.inf or o.points < 1 or o.samples < 2 or o.pretrain < 0:
        raise CarvError(
            "--budget must be above 0, --points at least 1, --samples at least 2 and --pretrain not below 0"
        )
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    teacher = GaussianTeacher(torch.stack([angles.cos(), angles.sin()], 1)[:, :, None, None], STD)
    g = torch.Generator().manual_seed(1)
    text = teacher.text_embeddings([""]).expand(o.samples, -1, -1)
    real, other = teacher.sample(text, g), teacher.sample(text, g)
    noise = torch.randn(real.shape, generator=g)
    network = pretrain(teacher, o.pretrain)

    def build(options: DistillOptions) -> Distillation:
        nets = [
            kind(copy.deepcopy(network), teacher.schedule, "v_prediction") for kind in (OneStepGenerator, FakeScore)
        ]
        return Distillation(teacher, options, ListedPrompts([""]), None, *nets)

    def evaluate(distillation: Distillation) -> dict[str, float]:
        with torch.no_grad():
            return {"w2": wasserstein(distillation.averaged()(noise, text), real)}

    base = DistillOptions(
        batch_size=o.batch, lr=o.lr, fake_lr=o.fake_lr, fake_updates=o.fake_updates, objective=o.objective,
        guidance_scale=1.0, max_batch=4096,
    )  # fmt: skip
    made_with = f"{o.samples} samples, {o.pretrain} steps before"
    trials = make_trials(o.work, o.methods, o.seeds, base, build, evaluate, made_with)
    run_trials(trials, [o.budget * i / o.points for i in range(o.points + 1)])
    comparison = read_off(o.work, trials)
    print(
        f"\nW2 to the exact mixture from {o.samples} samples, batch {o.batch}, {o.budget:g} s of training time a run, "
        f"{o.seeds} seeds, {torch.get_num_threads()} threads, torch {torch.__version__}. Two samples of the mixture "
        f"itself: {wasserstein(other, real):.3f}. Curves: {o.work}/curves-w2.png\n"
    )
    print(equal_table(comparison, ["w2"]))
    return 0


if __name__ == "__main__":
    run_script(main)
