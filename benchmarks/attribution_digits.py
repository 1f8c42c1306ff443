"""Linear datamodelling score on scikit-learn's digits: this package, traker and dattri, at one budget of gradients.

A small diffusion model on 8×8 images is trained on all items and, as the truth, on --subsets random halves of them.
A method's scores are summed over each half and ranked against the loss of that half's model on a query. Every method
spends --draws gradients an item and a query. traker and dattri are used as their documentation says, with the loss that
ports of them to diffusion take: a fixed grid of timesteps, one noise each, shared by the slot in the batch. They run
once with their own defaults and once in single precision with the best ridge of a grid on validation queries. The
other queries are reported.

    pip install scikit-learn joblib threadpoolctl narwhals traker dattri      # next to carv_3d, none needs a GPU
    python benchmarks/attribution_digits.py [--items 600] [--subsets 48] [--steps 1500] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attribution_metrics import linear_datamodelling_score
from bench import script_parser
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
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import first_line
from carv_3d.stats.bootstrap import mean_interval

RIDGES = [10.0**e for e in np.arange(-4, 4.01, 0.5)]  # of the mean eigenvalue
FIXED = (1.0, 10.0, 100.0)  # as a default could be
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
    """One model for each row of `members` (M, N) bool, trained together, each on its own items and noise."""
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
def losses_on(
    models: Sequence[nn.Module], z: Tensor, schedule: NoiseSchedule, draws: int = 200, *conditions: Tensor
) -> Tensor:
    """(M, Q) the expected loss of each model on each query, all under the same draws: strata and pairs.

    conditions: of the queries (Q, ...), as the models take them.
    """
    generator, count = torch.Generator().manual_seed(1), len(z)
    u = (torch.arange(draws // 2) + torch.rand(count, draws // 2, generator=generator)) / (draws // 2)
    t = (u * schedule.num_train_timesteps).long().repeat(1, 2).flatten()
    half = torch.randn(count, draws // 2, 1, 8, 8, generator=generator)
    eps = torch.cat([half, -half], 1).flatten(0, 1)
    given = (schedule.add_noise(z.repeat_interleave(draws, 0), eps, t), t)
    given += tuple(condition.repeat_interleave(draws, 0) for condition in conditions)
    each = [(m(*given) - eps).square().flatten(1).mean(1).view(count, draws).mean(1) for m in models]
    return torch.stack(each)


def features(
    model: nn.Module, schedule: NoiseSchedule, z: Tensor, draws: GroupedDrawOptions, role: str, loss: str,
    condition: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(N, groups, dim) by this package. condition: (N, ...), as the model takes it."""
    options = FeatureOptions(draws=draws, output=loss, dim=DIM)
    maker = FeatureMaker(GradientModel.from_module(model, schedule), options, role)
    conditions = [None] * len(z) if condition is None else list(condition)
    return torch.stack([maker.feature(str(i), *item) for i, item in enumerate(zip(z, conditions))])


def port_data(z: Tensor, draws: int, steps: int, *conditions: Tensor) -> torch.utils.data.TensorDataset:
    """Images with the noises and timesteps that ports of TRAK to diffusion give them, and with their conditions."""
    noise = torch.randn(BATCH, draws, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    t = torch.arange(0, steps, steps // draws)[:draws]
    return torch.utils.data.TensorDataset(z, noise[torch.arange(len(z)) % BATCH], t.expand(len(z), -1), *conditions)


def port_output(model: nn.Module, state: Any, schedule: NoiseSchedule, z: Tensor, eps: Tensor, t: Tensor,
                *conditions: Tensor) -> Tensor:  # fmt: skip
    """(K, 1, 8, 8), what the model predicts for one image under each of its draws; conditions are of the image."""
    z_t = schedule.alpha(t).view(-1, 1, 1, 1) * z + schedule.sigma(t).view(-1, 1, 1, 1) * eps
    expanded = (c.expand(len(t), *c.shape) for c in conditions)
    return functional_call(model, state, (z_t, t, *expanded))


def port_loss(model: nn.Module, state: Any, schedule: NoiseSchedule, z: Tensor, eps: Tensor, *more: Tensor) -> Tensor:
    """The loss of one image, a mean over its draws; more: as of `port_output`."""
    return (port_output(model, state, schedule, z, eps, *more) - eps).square().mean()


def traker_scores(
    model: Denoiser, schedule: NoiseSchedule, train: Any, queries: Any, ridge: float, half: bool
) -> Tensor:
    """(Q, N) by traker. Raises RuntimeError where it fails by itself (a singular kernel, say)."""
    import trak as traker

    class Output(traker.modelout_functions.AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(m: nn.Module, weights: Any, buffers: Any, *item: Tensor) -> Tensor:
            return port_loss(m, (weights, buffers), schedule, *item)

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
        return port_loss(model, (dict(params.items()), buffers), schedule, *data)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    tool = TRAKAttributor(
        task, lambda params, data: torch.zeros(()), {"proj_dim": DIM, "device": "cpu"}, regularization=ridge
    )
    tool.cache(torch.utils.data.DataLoader(train, BATCH))
    return tool.attribute(torch.utils.data.DataLoader(queries, BATCH)).T.detach().double()


@dataclass
class Evaluation:
    """Scores (Q, N) against what the models of the halves did.

    halves: (S, N) bool, the items of each half. outcomes: (S, Q), the losses of their models on the queries.
    validation: (Q,) bool, the queries on which ridges are chosen; the others are reported.
    """

    halves: Tensor
    outcomes: Tensor
    validation: Tensor

    def report(self, name: str, make: Callable[[], Tensor]) -> None:
        """Print the row of a method."""
        try:
            scores = make()
        except Exception as error:  # what a package fails with is a result here
            print(f"| {name} | failed: {first_line(error)} | |", flush=True)
            return
        each = linear_datamodelling_score(scores[~self.validation], self.halves, self.outcomes[:, ~self.validation])
        if not bool(each.isfinite().all()):
            print(f"| {name} | scores that are not finite | |", flush=True)
            return
        i = mean_interval(each)
        print(f"| {name} | {i.text('.3f')} | {len(each)} |", flush=True)

    def best(self, make: Callable[[float], Tensor], ridges: list[float]) -> tuple[float, Tensor]:
        """The ridge with the best score on the validation queries, as D-TRAK's authors choose it, and its scores."""
        tried = []
        for ridge in ridges:
            try:
                scores = make(ridge)
            except Exception:  # a singular kernel
                continue
            outcomes = self.outcomes[:, self.validation]
            value = linear_datamodelling_score(scores[self.validation], self.halves, outcomes).mean()
            tried.append((float(value.nan_to_num(-1.0)), ridge, scores))
        _, ridge, scores = max(tried, key=lambda f: f[0])
        return ridge, scores


def trained(o: argparse.Namespace, items: Tensor, members: Tensor, schedule: NoiseSchedule) -> list[Denoiser]:
    """The models of `train_all`, from --models where they are."""
    if o.models is None or not o.models.exists():
        models = train_all(items, members, schedule, o.steps)
        if o.models is not None:
            torch.save([m.state_dict() for m in models], o.models)
        return models
    models = [Denoiser() for _ in members]
    for model, state in zip(models, torch.load(o.models, weights_only=True)):
        model.load_state_dict(state)
    return models


def report_ours(evaluation: Evaluation, feature: Callable[[str, GroupedDrawOptions, str], Tensor], draws: int) -> None:
    """This package's methods; `feature` gives the features of a loss, draws and a role."""
    grouped = GroupedDrawOptions(num_draws=draws)
    strata, pairs = replace(grouped, antithetic=False), replace(grouped, stratify="none")
    plain = replace(strata, groups=1, stratify="none")
    many = GroupedDrawOptions(num_draws=8 * draws, groups=4)
    for title, loss in (("TRAK", "loss"), ("D-TRAK", "mean-squared-l2-norm")):
        for words, item_draws, query_draws in (
            ("independent draws", plain, plain),
            ("strata", strata, strata),
            ("pairs", pairs, pairs),
            ("strata and pairs", grouped, grouped),
            (f"strata and pairs, {many.num_draws} draws a query", grouped, many),
        ):
            report_draws(evaluation, title, loss, words, feature(loss, item_draws, "train"),
                         feature(loss, query_draws, "query"))  # fmt: skip


def report_draws(evaluation: Evaluation, title: str, loss: str, words: str, f: Tensor, q: Tensor) -> None:
    """The methods on the features of items and queries."""
    likely = choose_ridge(f, RIDGES)
    evaluation.report(f"{title}, {words}, ridge {likely:.2g} by likelihood", lambda: trak(q, f, likely).values)
    relative = f"RelatIF of {loss}, {words}, ridge {likely:.2g} by likelihood"
    evaluation.report(relative, lambda: relatif(q, f, likely).values)
    for fixed in FIXED:
        name = f"RelatIF of {loss}, {words}, ridge {fixed:g}"
        evaluation.report(name, lambda ridge=fixed: relatif(q, f, ridge).values)
    ridge, scores = evaluation.best(lambda r: trak(q, f, r).values, RIDGES)
    evaluation.report(f"{title}, {words}, ridge {ridge:.2g} on validation queries", lambda: scores)
    evaluation.report(f"cosine of {loss}, {words}", lambda: cosine(q, f).values)


def report_ports(
    evaluation: Evaluation, model: Denoiser, schedule: NoiseSchedule, train: Any, queries: Any, energy: float
) -> None:
    """traker and dattri. energy: the mean square of a gradient's entries, by which their ridges are relative as ours
    are; both add the ridge as it is."""

    def traker(ridge: float, half: bool = False) -> Tensor:
        return traker_scores(model, schedule, train, queries, ridge, half)

    def dattri(ridge: float) -> Tensor:
        return dattri_scores(model, schedule, train, queries, ridge)

    evaluation.report("traker, its defaults (float16, ridge 0)", lambda: traker(0.0, half=True))
    evaluation.report("traker, float32, ridge 0", lambda: traker(0.0))
    evaluation.report("dattri, its defaults (ridge 0)", lambda: dattri(0.0))
    for name, make, scale in (("traker, float32", traker, energy), ("dattri", dattri, energy / DIM)):
        try:
            ridge, scores = evaluation.best(partial(_scaled, make, scale), PORT_RIDGES)
        except ValueError:
            print(f"| {name}, any ridge | failed | |")
            continue
        evaluation.report(f"{name}, ridge {ridge:.2g} on validation queries", partial(torch.clone, scores))


def _scaled(make: Callable[[float], Tensor], scale: float, ridge: float) -> Tensor:
    return make(ridge * scale)


def main() -> None:
    """All methods' rows."""
    parser = script_parser(__doc__, items=600, subsets=48, steps=1500, draws=8, queries=60, threads=1)
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
    models = trained(o, items, torch.cat([torch.ones(1, o.items).bool(), halves]), schedule)
    outcomes = losses_on(models[1:], queries, schedule)
    model = models[0].eval()
    size = sum(p.numel() for p in model.parameters())
    whole = losses_on([model], queries, schedule).mean()
    print(f"losses on queries: all items {whole:.4f}, halves {outcomes.mean():.4f}")
    evaluation = Evaluation(halves, outcomes, torch.arange(o.queries) < o.queries // 3)
    print(f"\n{o.items} items, {o.subsets} halves, {o.queries} queries, {int((~evaluation.validation).sum())} of them "
          f"reported; {o.draws} gradients an item and a query; {DIM} projected of {size:,} parameters\n")  # fmt: skip
    print("| method | LDS [95 % over queries] | queries |\n|---|---|---|", flush=True)

    @cache
    def feature(loss: str, draws: GroupedDrawOptions, role: str) -> Tensor:
        return features(model, schedule, items if role == "train" else queries, draws, role, loss)

    report_ours(evaluation, feature, o.draws)
    plain = GroupedDrawOptions(num_draws=o.draws, antithetic=False, groups=1, stratify="none")
    energy = float(feature("loss", plain, "train").double().square().sum()) / size
    steps = schedule.num_train_timesteps
    train, asked = (port_data(x, o.draws, steps) for x in (items, queries))
    report_ports(evaluation, model, schedule, train, asked, energy)


if __name__ == "__main__":
    main()
