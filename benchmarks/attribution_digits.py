"""Linear datamodelling score on scikit-learn's digits: this package, traker and dattri, at one budget of gradients.

A small diffusion model on 8×8 images is trained on all items and, as the truth, on --subsets random halves of them.
A method's scores are added up over each half and ranked against the loss that the model of that half really has on a
query. Every method spends --draws gradients an item and a query. traker and dattri are used as their documentation
says, with the loss that ports of them to diffusion take (a fixed grid of timesteps, one noise each, shared by the slot
in the batch), once with their own defaults and once in single precision with the best ridge of a grid on validation
queries; what is reported is on the other queries.

    pip install scikit-learn joblib threadpoolctl narwhals traker dattri      # beside carv_3d, none needs a GPU
    python benchmarks/attribution_digits.py [--items 600] [--subsets 48] [--steps 1500] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from carv_3d.attribution import (
    FeatureMaker,
    FeatureOptions,
    GradientModel,
    GroupedDrawOptions,
    choose_ridge,
    cosine,
    relatif,
    trak,
)
from carv_3d.attribution.metrics import linear_datamodelling_score
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import first_line
from carv_3d.stats.bootstrap import mean_interval

RIDGES = [10.0**e for e in np.arange(-4, 4.01, 0.5)]  # of the mean eigenvalue
PORT_RIDGES = [10.0**e for e in range(-3, 5)]
BATCH = 100  # of the ports, by whose slots their noise is shared
DIM = 1024


class Denoiser(nn.Module):
    """A perceptron with a residual block: z_t (N, 1, 8, 8), t (N,) -> the noise."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.inner, self.time = nn.Linear(64, width), nn.Linear(32, width)
        self.block = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.outer = nn.Linear(width, 64)
        self.register_buffer("frequencies", torch.exp(-torch.linspace(0, 7, 16)))

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        h = self.inner(z_t.flatten(1)) + self.time(torch.cat([angles.sin(), angles.cos()], 1))
        return self.outer(F.silu(h + self.block(h))).view_as(z_t)


def train_all(z: Tensor, members: Tensor, schedule: NoiseSchedule, steps: int, batch: int = 32) -> list[Denoiser]:
    """One model for each row of `members` (M, N) bool, trained side by side, each on its own items and noise."""
    models = []
    for m in range(len(members)):
        torch.manual_seed(m)
        models.append(Denoiser())
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    pools = [row.nonzero().flatten() for row in members]

    def loss(p: Any, b: Any, z_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return (functional_call(models[0], (p, b), (z_t, t)) - eps).square().mean()

    step_gradient = vmap(grad(loss), in_dims=(0, 0, 0, 0, 0))
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=2e-3, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, M = torch.Generator().manual_seed(0), len(members)
    for step in range(steps):
        index = torch.stack([pool[torch.randint(len(pool), (batch,), generator=generator)] for pool in pools])
        t = torch.randint(schedule.num_train_timesteps, (M, batch), generator=generator)
        eps = torch.randn(M, batch, 1, 8, 8, generator=generator)
        z_t = schedule.add_noise(z[index].flatten(0, 1), eps.flatten(0, 1), t.flatten()).view_as(eps)
        gradients = step_gradient({k: v.detach() for k, v in parameters.items()}, buffers, z_t, t, eps)
        for name, value in parameters.items():
            value.grad = gradients[name]
        optimizer.step()
        decay.step()
        if step % 250 == 0:
            print(f"step {step} of {steps}", flush=True)
    for m, model in enumerate(models):
        model.load_state_dict({k: v[m].detach() for k, v in {**parameters, **buffers}.items()})
    return models


@torch.no_grad()
def losses_on(models: list[Denoiser], z: Tensor, schedule: NoiseSchedule, draws: int = 200) -> Tensor:
    """(M, Q) the expected loss of each model on each query, all under the same draws: strata and pairs."""
    generator = torch.Generator().manual_seed(1)
    u = (torch.arange(draws // 2) + torch.rand(len(z), draws // 2, generator=generator)) / (draws // 2)
    t = (u * schedule.num_train_timesteps).long().repeat(1, 2).flatten()
    half = torch.randn(len(z), draws // 2, 1, 8, 8, generator=generator)
    eps = torch.cat([half, -half], 1).flatten(0, 1)
    z_t = schedule.add_noise(z.repeat_interleave(draws, 0), eps, t)
    return torch.stack([(m(z_t, t) - eps).square().flatten(1).mean(1).view(len(z), draws).mean(1) for m in models])


def features(
    model: Denoiser, schedule: NoiseSchedule, z: Tensor, draws: GroupedDrawOptions, role: str, loss: str
) -> Tensor:
    """(N, groups, dim) by this package."""
    options = FeatureOptions(draws=draws, loss=loss, dim=DIM)
    maker = FeatureMaker(GradientModel.of_module(model, schedule), options, role)
    return torch.stack([maker.feature(str(i), one) for i, one in enumerate(z)])


def port_data(z: Tensor, draws: int, steps: int) -> torch.utils.data.TensorDataset:
    """Images with the noises and timesteps that ports of TRAK to diffusion give them."""
    noise = torch.randn(BATCH, draws, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    t = torch.arange(0, steps, steps // draws)[:draws]
    return torch.utils.data.TensorDataset(z, noise[torch.arange(len(z)) % BATCH], t.expand(len(z), -1))


def port_loss(model: nn.Module, state: Any, schedule: NoiseSchedule, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    z_t = schedule.alpha(t).view(-1, 1, 1, 1) * z + schedule.sigma(t).view(-1, 1, 1, 1) * eps
    return (functional_call(model, state, (z_t, t)) - eps).square().mean()


def traker_scores(
    model: Denoiser, schedule: NoiseSchedule, train: Any, queries: Any, ridge: float, half: bool
) -> Tensor:
    """(Q, N) by traker. Raises RuntimeError where it fails by itself (a singular kernel, say)."""
    import trak as traker

    class Output(traker.modelout_functions.AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(m: nn.Module, weights: Any, buffers: Any, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
            return port_loss(m, (weights, buffers), schedule, z, eps, t)

        def get_out_to_loss_grad(self, m: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    with tempfile.TemporaryDirectory() as folder:
        tool = traker.TRAKer(
            model=model, task=Output(), train_set_size=len(train), save_dir=folder, device="cpu", proj_dim=DIM,
            use_half_precision=half, lambda_reg=ridge, logging_level=40,
        )  # fmt: skip
        tool.load_checkpoint(model.state_dict(), model_id=0)
        for batch in torch.utils.data.DataLoader(train, BATCH):
            tool.featurize(batch=batch, num_samples=len(batch[0]))
        tool.finalize_features()
        tool.start_scoring_checkpoint("q", model.state_dict(), model_id=0, num_targets=len(queries))
        for batch in torch.utils.data.DataLoader(queries, BATCH):
            tool.score(batch=batch, num_samples=len(batch[0]))
        return torch.from_numpy(np.array(tool.finalize_scores("q"))).T.double()


def dattri_scores(model: Denoiser, schedule: NoiseSchedule, train: Any, queries: Any, ridge: float) -> Tensor:
    """(Q, N) by dattri."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    buffers = dict(model.named_buffers())

    def loss(params: Any, data: tuple[Tensor, ...]) -> Tensor:
        z, eps, t = data
        return port_loss(model, (dict(params.items()), buffers), schedule, z, eps, t)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    tool = TRAKAttributor(
        task, lambda params, data: torch.zeros(()), {"proj_dim": DIM, "device": "cpu"}, regularization=ridge
    )
    tool.cache(torch.utils.data.DataLoader(train, BATCH))
    return tool.attribute(torch.utils.data.DataLoader(queries, BATCH)).T.detach().double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("items", 600), ("subsets", 48), ("steps", 1500), ("draws", 8), ("queries", 60), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--models", type=Path, help="keeps the trained models in this file, for another run")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    from sklearn.datasets import load_digits

    z = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))]
    items, queries = z[: o.items], z[-o.queries :]
    assert o.items + o.queries <= len(z)
    schedule = NoiseSchedule.scaled_linear()
    generator = torch.Generator().manual_seed(2)
    halves = torch.stack([torch.randperm(o.items, generator=generator) < o.items // 2 for _ in range(o.subsets)])
    members = torch.cat([torch.ones(1, o.items).bool(), halves])
    if o.models is not None and o.models.exists():
        models = [Denoiser() for _ in members]
        for one, state in zip(models, torch.load(o.models, weights_only=True)):
            one.load_state_dict(state)
    else:
        models = train_all(items, members, schedule, o.steps)
        if o.models is not None:
            torch.save([m.state_dict() for m in models], o.models)
    outcomes = losses_on(models[1:], queries, schedule)
    model = models[0].eval()
    model_size = sum(p.numel() for p in model.parameters())
    print(
        f"losses on queries: all items {losses_on([model], queries, schedule).mean():.4f}, halves {outcomes.mean():.4f}"
    )
    validation = torch.arange(o.queries) < o.queries // 3
    print(f"\n{o.items} items, {o.subsets} halves, {o.queries} queries, {int((~validation).sum())} of them reported; "
          f"{o.draws} gradients an item and a query; {DIM} projected of {model_size:,} parameters\n")  # fmt: skip
    print("| method | LDS | 95 % over queries |\n|---|---|---|", flush=True)

    def report(name: str, make: Callable[[], Tensor], chosen: list[float] | None = None) -> Tensor | None:
        try:
            scores = make()
        except Exception as error:  # what a package fails with is a result here
            print(f"| {name} | failed: {first_line(error)} | |", flush=True)
            return None
        each = linear_datamodelling_score(scores[~validation], halves, outcomes[:, ~validation])
        if not bool(each.isfinite().all()):
            print(f"| {name} | scores that are not finite | |", flush=True)
            return None
        i = mean_interval(each)
        print(f"| {name} | {i.value:.3f} | {i.low:.3f} to {i.high:.3f} |", flush=True)
        return scores

    def best(make: Callable[[float], Tensor], ridges: list[float]) -> tuple[float, Tensor]:
        """The ridge with the best score on the validation queries, as D-TRAK's authors choose it."""
        found = []
        for ridge in ridges:
            try:
                scores = make(ridge)
            except Exception:  # a singular kernel
                continue
            value = linear_datamodelling_score(scores[validation], halves, outcomes[:, validation]).mean()
            found.append((float(value.nan_to_num(-1.0)), ridge, scores))
        _, ridge, scores = max(found, key=lambda f: f[0])
        return ridge, scores

    steps = schedule.num_train_timesteps
    grouped = GroupedDrawOptions(num_draws=o.draws)
    strata, pairs = replace(grouped, antithetic=False), replace(grouped, stratify="none")
    plain = replace(strata, groups=1, stratify="none")
    many = GroupedDrawOptions(num_draws=8 * o.draws, groups=4)
    made: dict[Any, Tensor] = {}

    def of(loss: str, draws: GroupedDrawOptions, role: str) -> Tensor:
        key = (loss, draws, role)
        if key not in made:
            made[key] = features(model, schedule, items if role == "train" else queries, draws, role, loss)
        return made[key]

    for title, loss in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        for words, draws, query_draws in (
            ("independent draws", plain, plain),
            ("strata", strata, strata),
            ("pairs", pairs, pairs),
            ("strata and pairs", grouped, grouped),
            (f"strata and pairs, {many.num_draws} draws a query", grouped, many),
        ):
            f, q = of(loss, draws, "train"), of(loss, query_draws, "query")
            ridge = choose_ridge(f, RIDGES)
            report(f"{title}, {words}, ridge {ridge:.2g} by likelihood", lambda: trak(q, f, ridge).values)  # noqa: B023
            relative = f"RelatIF of {loss}, {words}, ridge {ridge:.2g} by likelihood"
            report(relative, lambda: relatif(q, f, ridge).values)  # noqa: B023
            ridge, scores = best(lambda r: trak(q, f, r).values, RIDGES)  # noqa: B023
            report(f"{title}, {words}, ridge {ridge:.2g} on validation queries", lambda: scores)  # noqa: B023
            report(f"cosine of {loss}, {words}", lambda: cosine(q, f).values)  # noqa: B023
    train, asked = port_data(items, o.draws, steps), port_data(queries, o.draws, steps)
    report("traker, its defaults (float16, ridge 0)", lambda: traker_scores(model, schedule, train, asked, 0.0, True))
    report("traker, float32, ridge 0", lambda: traker_scores(model, schedule, train, asked, 0.0, False))
    report("dattri, its defaults (ridge 0)", lambda: dattri_scores(model, schedule, train, asked, 0.0))
    # both add the ridge as it is; here it is relative to the mean eigenvalue of their kernels, as ours
    energy = float(of("loss", plain, "train").double().square().sum()) / model_size
    for name, scored, scale in (
        ("traker, float32", lambda r: traker_scores(model, schedule, train, asked, r, False), energy),
        ("dattri", lambda r: dattri_scores(model, schedule, train, asked, r), energy / DIM),
    ):
        try:
            ridge, scores = best(lambda r: scored(r * scale), PORT_RIDGES)  # noqa: B023
        except ValueError:
            print(f"| {name}, any ridge | failed | |")
            continue
        report(f"{name}, ridge {ridge:.2g} on validation queries", lambda: scores)  # noqa: B023


if __name__ == "__main__":
    main()
