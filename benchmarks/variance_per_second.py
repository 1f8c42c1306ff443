"""Variance per second of the estimators on a half-trained field, against two renders of one uniform draw each.

    ./install.sh python benchmarks/variance_per_second.py [--prompt "a red mug"] [--steps 150] [--repeats 100]

Every allocation starts from the same field, frozen. Its gradient (of the distillation loss, with respect to all of
the field's parameters) is drawn --repeats times; a step's seconds are those of the whole step, with all losses,
interleaved. ECM = (variance · seconds of the baseline) / (variance · seconds), with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from rich.progress import track
from torch import Tensor

from carv_3d.config import load_config
from carv_3d.core.accounting import ecm_interval, parameter_gradients, total_variance, variance_split
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.text_to_3d import TextTo3D

BASELINE = (2, 1, "uniform", "none")
GRID = (
    BASELINE, (1, 1, "weight", "none"), (2, 1, "weight", "none"), (1, 4, "uniform", "none"),
    (1, 4, "weight", "none"), (1, 2, "weight", "render"), (1, 4, "weight", "render"),
    (1, 8, "weight", "render"), (1, 16, "weight", "render"), (2, 4, "weight", "render"),
)  # fmt: skip


def host_of(entry: tuple[int, int, str, str], o: argparse.Namespace, teacher: StableDiffusionTeacher) -> TextTo3D:
    renders, draws, proposal, stratify = entry
    guidance = {"num_draws": draws, "proposal": proposal, "stratify": stratify}
    overrides = [f"data.batch_size={renders}", *(f"system.guidance.{k}={v}" for k, v in guidance.items())]
    return TextTo3D(load_config(overrides=[*overrides, f"seed={o.seed}"], prompt=o.prompt), teacher)


def distillation_gradient(host: TextTo3D) -> Tensor:
    """The gradient of the distillation loss alone, of one step's draws: ``(P,)``."""
    grads = torch.autograd.grad(host.forward()[1].loss_sds, list(host.field.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--steps", type=int, default=150, help="steps before the field is frozen")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    teacher = StableDiffusionTeacher.load(o.model)
    first = TextTo3D(load_config(overrides=[f"seed={o.seed}"], prompt=o.prompt), teacher)
    for _ in track(range(o.steps), description="training the field"):
        first.train_step()
    hosts = {entry: host_of(entry, o, teacher) for entry in GRID}
    for host in hosts.values():
        host.field.load_state_dict(first.field.state_dict())
        host.step = o.steps
        host.backward()  # caches, lazy initialisation
    gradients: dict[tuple, list[Tensor]] = {entry: [] for entry in GRID}
    seconds: dict[tuple, list[float]] = {entry: [] for entry in GRID}
    for _ in track(range(o.repeats), description="drawing gradients"):
        for entry, host in hosts.items():
            gradients[entry].append(distillation_gradient(host))
            begin = time.perf_counter()
            host.backward()
            seconds[entry].append(time.perf_counter() - begin)
    measured = {entry: torch.stack(g) for entry, g in gradients.items()}
    cost = {entry: statistics.median(s) for entry, s in seconds.items()}
    base = measured[BASELINE]
    print(f"\n{o.prompt!r}, field frozen after {o.steps} steps, {o.repeats} gradients each, "
          f"{torch.get_num_threads()} threads\n")  # fmt: skip
    print("| R | K | proposal | strata | variance | ms a step | cost against (2, 1) | ECM [95 %] |")
    print("|---|---|---|---|---|---|---|---|")
    for entry, g in measured.items():
        found = ecm_interval(base, cost[BASELINE], g, cost[entry], generator=torch.Generator().manual_seed(0))
        print(f"| {' | '.join(map(str, entry))} | {total_variance(g) / total_variance(base):.3f} "
              f"| {cost[entry] * 1e3:.0f} | {cost[entry] / cost[BASELINE]:.2f} "
              f"| {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] |")  # fmt: skip
    for proposal in ("uniform", "weight"):
        split = variance_split(draws_of_renders(hosts[1, 4, proposal, "none"], max(8, o.repeats // 2)))
        print(f"\nOne {proposal} draw of one render: {split.upstream_share:.1%} of the variance is upstream.")


def draws_of_renders(host: TextTo3D, renders: int) -> Iterator[Tensor]:
    """For each of ``renders`` renders, the parameter gradient of each of its K draws: ``(K, P)``."""
    for _ in range(renders):
        guided = host.forward()[1]
        weights = guided.estimate.weights[:, :, None, None, None]
        yield parameter_gradients(guided.latents, list(host.field.parameters()), weights * guided.estimate.residual)[0]


if __name__ == "__main__":
    main()
