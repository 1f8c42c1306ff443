"""Attribution against retraining, on a class-conditional diffusion model: three tests, each method at equal cost.

A small model of scikit-learn's digits is given each image's class. Every method spends --draws gradients on an item and
on a query, and its ridge is the best of one grid on validation queries that are not reported.

- lds: --subsets models on random halves. Summed scores are ranked against what these models lose on a query (LDS).
- brittleness: the 5 % of the items with the highest scores for a query are taken out, and a model is trained without
  them. The figure is by how much its loss on the query rises, in percent.
- mislabelled: 10 % of the items have the class of another. The figure is the AUC of an item's score for itself.

traker and dattri are used as their documentation says, with what ports of TRAK to diffusion give them: a fixed grid of
timesteps, one noise each, shared by the slot in the batch. D-TRAK is written out as its authors have it (arXiv
2311.00500): the same grid, the squared norm of the output, a dense projection. Intervals are bootstraps over queries
(or items), and those of a difference are of pairs.

    pip install scikit-learn joblib threadpoolctl narwhals traker dattri      # next to carv_3d, none needs a GPU
    python benchmarks/attribution_retraining.py [--subsets 64] [--queries 60] [--csv FILE] [--table]
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import attribution_digits
import torch
import torch.nn.functional as F
from attribution_digits import DIM, Denoiser, dattri_scores, port_data, port_output, traker_scores
from attribution_metrics import linear_datamodelling_score
from bench import script_parser
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from carv_3d.attribution import (
    GroupedDrawOptions,
    bilinear,
    choose_ridge,
    kernel,
    relatif,
    trak,
)
from carv_3d.attribution.scores import solve
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line
from carv_3d.io.tables import csv_text
from carv_3d.stats.bootstrap import interval, mean_interval, picks

CSV = Path(__file__).resolve().parents[1] / "docs" / "results" / "attribution-retraining.csv"
RIDGES = [10.0**e for e in range(-3, 5)]  # of the mean eigenvalue, for every method
CLASSES = 10
SHARE = 0.05  # of the items, taken out
WRONG = 0.1  # of the classes
OURS = "carv_3d, RelatIF"
HEAD = ("test", "method", "ridge", "value", "low", "high", "ours_minus_it", "difference_low", "difference_high", "over")
Scorer = Callable[[float], Tensor]  # of a ridge: (Q, N)


class LabelDenoiser(Denoiser):
    """z_t (N, 1, 8, 8), t (N,) and the class (N, 10), one number of which is 1 -> the noise."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(width)
        self.label = nn.Linear(CLASSES, width, bias=False)

    def forward(self, z_t: Tensor, t: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """As the class says."""
        angles = t[:, None] * self.frequencies
        h = self.inner(z_t.flatten(1)) + self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        return self.outer(F.silu(h + self.block(h))).view_as(z_t)


@dataclass
class Data:
    """z (N, 1, 8, 8) and the classes (N, 10) of items and of queries."""

    z: Tensor
    label: Tensor
    asked: Tensor
    asked_label: Tensor
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule.scaled_linear)


def train(data: Data, members: Tensor, steps: int, same: bool = False, batch: int = 32) -> list[LabelDenoiser]:
    """One model for each row of `members` (M, N) bool, trained together.

    same: whether all begin with the same numbers and are given the same timesteps and noises, so that they differ by
    their items alone.
    """
    models = []
    for m in range(len(members)):
        torch.manual_seed(0 if same else m)
        models.append(LabelDenoiser())
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    pools = [row.nonzero().flatten() for row in members]

    def loss(p: Any, b: Any, z_t: Tensor, t: Tensor, label: Tensor, eps: Tensor) -> Tensor:
        return (functional_call(models[0], (p, b), (z_t, t, label)) - eps).square().mean()

    gradient = vmap(grad(loss), in_dims=(0, 0, 0, 0, 0, 0))
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=2e-3, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, M = torch.Generator().manual_seed(0), len(members)
    own = 1 if same else M
    for step in range(steps):
        u = torch.rand(own, batch, generator=generator).expand(M, batch)
        index = torch.stack([pool[(row * len(pool)).long()] for pool, row in zip(pools, u)])
        t = torch.randint(data.schedule.num_train_timesteps, (own, batch), generator=generator).expand(M, batch)
        eps = torch.randn(own, batch, 1, 8, 8, generator=generator).expand(M, batch, 1, 8, 8)
        z_t = data.schedule.add_noise(data.z[index].flatten(0, 1), eps.flatten(0, 1), t.flatten()).view_as(eps)
        values = {k: v.detach() for k, v in parameters.items()}
        gradients = gradient(values, buffers, z_t, t, data.label[index], eps)
        for name, value in parameters.items():
            value.grad = gradients[name]
        optimizer.step()
        decay.step()
        if step % 250 == 0:
            print(f"step {step} of {steps}, {M} models", flush=True)
    for m, model in enumerate(models):
        model.load_state_dict({k: v[m].detach() for k, v in {**parameters, **buffers}.items()})
    return models


def losses_on(models: list[LabelDenoiser], data: Data, draws: int = 200) -> Tensor:
    """(M, Q) as of digits alone, given the queries' classes."""
    return attribution_digits.losses_on(models, data.asked, data.schedule, draws, data.asked_label)


def features(model: LabelDenoiser, data: Data, draws: int, output: str) -> tuple[Tensor, Tensor]:
    """(N, groups, dim) and (Q, groups, dim) by this package: strata and pairs, as its defaults are."""
    grouped = GroupedDrawOptions(num_draws=draws)
    made = partial(attribution_digits.features, model, data.schedule, draws=grouped, loss=output)
    return made(data.z, role="train", condition=data.label), made(data.asked, role="query", condition=data.asked_label)


def d_trak_features(model: LabelDenoiser, schedule: NoiseSchedule, rows: Any) -> Tensor:
    """(N, 1, dim) as D-TRAK's authors have it, of a dataset of `port_data`."""
    state, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def output(p: Any, *item: Tensor) -> Tensor:
        return port_output(model, (p, buffers), schedule, *item).square().mean()

    each = vmap(grad(output), in_dims=(None, 0, 0, 0, 0))
    size = sum(v.numel() for v in state.values())
    generator = torch.Generator().manual_seed(3)
    signs = (torch.randint(0, 2, (size, DIM), generator=generator, dtype=torch.int8) * 2 - 1).float()
    out = []
    for batch in torch.utils.data.DataLoader(rows, 50):
        gradients = each({k: v.detach() for k, v in state.items()}, *batch)
        out.append(torch.cat([g.flatten(1) for g in gradients.values()], 1) @ signs / DIM**0.5)
    return torch.cat(out)[:, None]


def scorers(model: LabelDenoiser, data: Data, draws: int, ports: bool = True) -> dict[str, Scorer]:
    """Each method's scores (Q, N) as a function of the ridge; what does not depend on it is made once."""
    f, q = features(model, data, draws, "loss")
    gram = kernel(f)
    likely = choose_ridge(f, RIDGES)
    methods: dict[str, Scorer] = {
        OURS: lambda ridge: relatif(q, f, ridge, gram).values,
        "carv_3d, TRAK": lambda ridge: trak(q, f, ridge, gram).values,
        "carv_3d, RelatIF, ridge without validation": lambda ridge: relatif(q, f, likely, gram).values,
    }
    if not ports:
        return methods
    steps = data.schedule.num_train_timesteps
    rows = port_data(data.z, draws, steps, data.label)
    asked = port_data(data.asked, draws, steps, data.asked_label)
    energy = float(f.double().mean(1).square().sum(1).mean())  # their ridges are added as they are
    size = sum(p.numel() for p in model.parameters())
    methods["traker"] = lambda ridge: traker_scores(
        model, data.schedule, rows, asked, ridge * energy * len(data.z) / size, half=False
    )
    methods["dattri"] = lambda ridge: dattri_scores(
        model, data.schedule, rows, asked, ridge * energy * len(data.z) / size / DIM
    )
    d, d_asked = (d_trak_features(model, data.schedule, x) for x in (rows, asked))
    d_gram = kernel(d)
    methods["D-TRAK"] = lambda ridge: bilinear(solve(d_gram, d_asked[:, 0].double(), ridge)[:, None], d).values
    return methods


@dataclass
class Result:
    """A method's best scores on the validation half of a test: the ridge, and a value for each query or item."""

    ridge: float
    scores: Tensor


def tuned(methods: dict[str, Scorer], value: Callable[[Tensor], float]) -> dict[str, Result]:
    """Each method with the ridge of the best `value` of its scores; one that fails at every ridge is left out."""
    results = {}
    for name, scorer in methods.items():
        tried: list[tuple[float, float, Tensor]] = []
        for ridge in RIDGES[:1] if "without" in name else RIDGES:
            try:
                scores = scorer(ridge)
            except Exception as error:  # what a package fails with is a result here
                print(f"{name} at ridge {ridge:g}: {first_line(error)}")
                continue
            if bool(scores.isfinite().all()):
                tried.append((value(scores), ridge, scores))
        if tried:
            _, ridge, scores = max(tried, key=lambda entry: entry[0])
            results[name] = Result(float("nan") if "without" in name else ridge, scores)
            print(f"{name}: ridge {ridge:g}", flush=True)
    return results


def rows(test: str, values: dict[str, tuple[float, Tensor]], over: str) -> list[tuple[object, ...]]:
    """Of each method its mean with a bootstrap interval, and that of the difference of ours. values: ridge, (Q,)."""
    ours = values[OURS][1]
    out: list[tuple[object, ...]] = []
    for name, (ridge, each) in values.items():
        own = mean_interval(each)
        apart = mean_interval(ours - each)
        difference = ("", "", "") if name == OURS else (apart.value, apart.low, apart.high)
        out.append((test, name, ridge, own.value, own.low, own.high, *difference, f"{len(each)} {over}"))
    return out


def lds(data: Data, o: Any) -> tuple[list[tuple[object, ...]], dict[str, Result]]:
    """Models on halves; also the tuned scores, for what follows."""
    count = len(data.z)
    generator = torch.Generator().manual_seed(2)
    halves = torch.stack([torch.randperm(count, generator=generator) < count // 2 for _ in range(o.subsets)])
    models = train(data, torch.cat([torch.ones(1, count).bool(), halves]), o.steps)
    outcomes = losses_on(models[1:], data)
    validation = torch.arange(len(data.asked)) < o.validation
    whole = losses_on(models[:1], data).mean()
    print(f"losses on queries: all items {whole:.4f}, halves {outcomes.mean():.4f}")

    def each(scores: Tensor, picked: Tensor) -> Tensor:
        return linear_datamodelling_score(scores[picked], halves, outcomes[:, picked]).nan_to_num(0.0)

    results = tuned(scorers(models[0].eval(), data, o.draws), lambda s: float(each(s, validation).mean()))
    values = {name: (r.ridge, each(r.scores, ~validation)) for name, r in results.items()}
    return rows("lds", values, "queries"), results


def brittleness(data: Data, results: dict[str, Result], o: Any) -> list[tuple[object, ...]]:
    """The highest scores taken out, with the ridges that the LDS chose."""
    count = len(data.z)
    asked = range(o.validation, o.validation + o.removals)
    generator = torch.Generator().manual_seed(5)
    chosen = {name: r.scores for name, r in results.items()}
    chosen["at random"] = torch.rand(len(data.asked), count, generator=generator)
    members = [torch.ones(count, dtype=torch.bool)]
    for scores in chosen.values():
        for query in asked:
            kept = torch.ones(count, dtype=torch.bool)
            kept[scores[query].argsort(descending=True)[: round(SHARE * count)]] = False
            members.append(kept)
    losses = losses_on(train(data, torch.stack(members), o.steps, same=True), data)
    values = {}
    for m, name in enumerate(chosen):
        own = losses[1 + m * o.removals : 1 + (m + 1) * o.removals]
        rise = torch.stack([own[i, query] / losses[0, query] - 1 for i, query in enumerate(asked)])
        values[name] = (results[name].ridge if name in results else float("nan"), 100 * rise)
    return rows("brittleness", values, "queries")


def load_data(items: int, queries: int) -> Data:
    """Scikit-learn's digits in [-1, 1], shuffled: the first are the items, the last the queries."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    z = torch.from_numpy(digits.images).float()[order, None] / 8 - 1
    label = F.one_hot(torch.from_numpy(digits.target).long()[order], CLASSES).float()
    if items + queries > len(z):
        raise CarvError(f"there are {len(z)} digits, and {items} items and {queries} queries were asked for")
    return Data(z[:items], label[:items], z[-queries:], label[-queries:])


def area_under_curve(scores: Tensor, wrong: Tensor) -> float:
    """The probability that a wrong item has a higher score than a right one."""
    high, low = scores[wrong], scores[~wrong]
    return float((high[:, None] > low).double().mean() + 0.5 * (high[:, None] == low).double().mean())


def mislabelled(data: Data, o: Any) -> list[tuple[object, ...]]:
    """A model of items of which some have a wrong class, and each item's score for itself."""
    count = len(data.z)
    generator = torch.Generator().manual_seed(6)
    wrong = torch.randperm(count, generator=generator) < round(WRONG * count)
    turned = (data.label.argmax(1) + torch.randint(1, CLASSES, (count,), generator=generator)) % CLASSES
    label = torch.where(wrong[:, None], F.one_hot(turned, CLASSES).float(), data.label)
    noisy = Data(data.z, label, data.z, label, data.schedule)
    (model,) = train(noisy, torch.ones(1, count, dtype=torch.bool), o.steps)
    validation = torch.arange(count) % 3 == 0

    def value(scores: Tensor) -> float:
        own = scores.diagonal()
        return area_under_curve(own[validation], wrong[validation])

    # RelatIF divides by what an item's score for itself is, so that it has none of its own: TRAK's is ours here
    methods = {k: v for k, v in scorers(model.eval(), noisy, o.draws).items() if "RelatIF" not in k}
    results = {k: (r.ridge, r.scores.diagonal()) for k, r in tuned(methods, value).items()}
    results["the loss itself"] = (float("nan"), losses_on([model], noisy, 64)[0].double())
    own = {name: scores[~validation] for name, (_, scores) in results.items()}
    flags, count = wrong[~validation], int((~validation).sum())
    curves = {k: torch.tensor([area_under_curve(v[p], flags[p]) for p in picks(count)]) for k, v in own.items()}
    out: list[tuple[object, ...]] = []
    for name, each in curves.items():
        whole, apart = interval(each, count), interval(curves["carv_3d, TRAK"] - each, count)
        difference = ("", "", "") if name == "carv_3d, TRAK" else (apart.value, apart.low, apart.high)
        own_figures = (results[name][0], whole.value, whole.low, whole.high)
        out.append(("mislabelled", name, *own_figures, *difference, f"{count} items"))
    return out


def markdown(path: Path) -> str:
    """The table of docs/results/attribution.md, from the CSV."""
    lines = ["| test | method | ridge | value | 95 % | ours minus it | 95 % |", "|---" * 7 + "|"]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            spec = ".1f" if row["test"] == "brittleness" else ".3f"
            own, low, high = (_number(row[k], spec) for k in ("value", "low", "high"))
            apart, least, most = (_number(row[k], f"+{spec}") for k in HEAD[6:9])
            cells = (row["test"], row["method"], _number(row["ridge"], "g"), own, f"{low} to {high}", apart)
            lines.append(f"| {' | '.join(cells)} | {f'{least} to {most}' if apart else ''} |")
    return "\n".join(lines)


def _number(text: str, spec: str) -> str:
    return f"{float(text):{spec}}" if text else ""


def main() -> None:
    """All three tests, as a CSV and a table."""
    parser = script_parser(
        __doc__, items=600, queries=60, validation=20, subsets=64, removals=20, steps=1500, draws=8, threads=1
    )
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--table", action="store_true", help="only show the table of the CSV that is there")
    o = parser.parse_args()
    if not o.table:
        torch.set_num_threads(o.threads)
        data = load_data(o.items, o.queries)
        table, results = lds(data, o)
        for part in (lambda: brittleness(data, results, o), lambda: mislabelled(data, o)):
            o.csv.write_text(csv_text(HEAD, table), encoding="utf-8")  # what a stop leaves
            table += part()
        o.csv.write_text(csv_text(HEAD, table), encoding="utf-8")
    print(markdown(o.csv))


if __name__ == "__main__":
    main()
