"""Features against closed forms and slow references; the store through kills, shards and strangers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scaling_double import Scaling, TensorItems

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions
from carv_3d.attribution.features import item_draws
from carv_3d.attribution.losses import LOSSES, sample_losses
from carv_3d.attribution.projection import Projection
from carv_3d.core.proposals import make_proposal
from carv_3d.errors import CarvError

DESIGNS = [("none", False), ("none", True), ("render", False), ("render", True)]


def options(stratify: str = "render", antithetic: bool = True, K: int = 4, groups: int = 1, **more) -> FeatureOptions:
    draws = GroupedDrawOptions(num_draws=K, groups=groups, stratify=stratify, antithetic=antithetic)
    return FeatureOptions(draws=draws, dim=None, **more)


@pytest.mark.parametrize(("stratify", "antithetic"), DESIGNS)
def test_features_are_unbiased_for_the_exact_gradient(model, items, stratify, antithetic) -> None:
    maker = FeatureMaker(model, options(stratify, antithetic))
    z = items.latents(0)
    exact = model.module.expected_gradient(z, model.schedule)
    rows = torch.stack([maker.feature(f"copy {i}", z)[0] for i in range(600)]).double()
    error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - exact).abs() / error).max() < 4.0


@pytest.mark.parametrize(("stratify", "antithetic"), DESIGNS)
def test_the_variance_of_each_design_is_the_one_in_theory(model, items, stratify, antithetic) -> None:
    K, z = 10, items.latents(0)
    maker = FeatureMaker(model, options(stratify, antithetic, K=K))
    rows = torch.stack([maker.feature(f"copy {i}", z)[0] for i in range(500)]).double()
    mean, noise = model.module.moments(z, model.schedule, antithetic)  # given t, of a draw or a pair
    units = K // 2 if antithetic else K
    strata = units if stratify == "render" else 1
    spread = mean.unflatten(0, (strata, -1)).var(1, unbiased=False).mean(0)
    theory = float((noise.mean(0) + spread).sum() / units)
    assert float(rows.var(0).sum()) == pytest.approx(theory, rel=0.1)


def test_a_proposal_changes_no_expectation(model, items) -> None:
    table = torch.linspace(0.2, 2.0, model.schedule.num_train_timesteps)
    proposal = make_proposal("weight", model.schedule, table)
    maker = FeatureMaker(model, options("none", False), proposal=proposal)
    z = items.latents(1)
    rows = torch.stack([maker.feature(f"copy {i}", z)[0] for i in range(600)]).double()
    exact = model.module.expected_gradient(z, model.schedule)
    assert ((rows.mean(0) - exact).abs() / (rows.std(0) / len(rows) ** 0.5)).max() < 4.0


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_feature_is_the_mean_of_its_draws_gradients(sd_teacher, loss) -> None:
    model = GradientModel.from_teacher(sd_teacher)
    o = options(K=4, groups=2, output=loss, weighting="sds")
    maker = FeatureMaker(model, o)
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = sd_teacher.text_embeddings(["a red mug"])[0]
    feature = maker.feature("x", z, text)
    assert feature.shape == (2, model.num_parameters)
    schedule = model.schedule
    for row, draws in zip(feature, item_draws("x", "train", o.draws, maker.proposal, (4, 8, 8), 0)):
        total = torch.zeros(model.num_parameters)
        with model.trainable() as parameters:
            for t, eps in zip(draws.t[0], draws.eps[0]):
                z_t = schedule.alpha(t) * z + schedule.sigma(t) * eps
                predicted = sd_teacher.unet(z_t[None], t, text[None]).sample
                value = schedule.w(t, "sds") * sample_losses(loss, predicted, eps[None])[0]
                grads = torch.autograd.grad(value, parameters, allow_unused=True)
                whole = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters)]
                total += torch.cat([g.flatten() for g in whole]) / 2
        assert torch.allclose(row, total, atol=2e-5 * float(total.abs().max()), rtol=1e-3)
    assert not any(p.requires_grad for p in sd_teacher.unet.parameters())


def test_a_v_prediction_is_held_against_v(v_prediction_folder) -> None:
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    teacher = StableDiffusionTeacher.load(str(v_prediction_folder), device="cpu")
    maker = FeatureMaker(GradientModel.from_teacher(teacher), options(K=2))
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = teacher.text_embeddings(["a red mug"])[0]
    draws = item_draws("x", "train", maker.options.draws, maker.proposal, (4, 8, 8), 0)[0]
    t, eps = draws.t[0], draws.eps[0]
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (teacher.schedule.alpha, teacher.schedule.sigma))
    with torch.no_grad():
        predicted = teacher.unet(alpha * z + sigma * eps, t, text.expand(2, -1, -1)).sample
        expected = (predicted - (alpha * eps - sigma * z)).square().mean()
        assert float(maker.loss(z, text, draws)) == pytest.approx(float(expected), rel=1e-5)


def test_draws_depend_on_the_key_alone(schedule) -> None:
    proposal = make_proposal("uniform", schedule, "uniform")
    few, many = GroupedDrawOptions(num_draws=4, groups=2), GroupedDrawOptions(num_draws=8, groups=4)
    a = item_draws("x", "train", few, proposal, (2, 3), 0)
    b = item_draws("x", "train", many, proposal, (2, 3), 0)
    assert all(torch.equal(p.eps, q.eps) and torch.equal(p.t, q.t) for p, q in zip(a, b))
    for key, role, seed in (("y", "train", 0), ("x", "query", 0), ("x", "train", 1)):
        other = item_draws(key, role, few, proposal, (2, 3), seed)
        assert not torch.equal(a[0].eps, other[0].eps)
    assert torch.equal(a[0].eps[0, 0], -a[0].eps[0, 1])
    assert not torch.equal(a[0].eps, a[1].eps)
    times = torch.cat([group.t for group in b])
    assert len({tuple(t) for t in times.tolist()}) == 4  # each group has timesteps of its own


def test_projections_keep_inner_products() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5000, generator=generator)
    y = 0.6 * x + 0.8 * torch.randn(5000, generator=generator)
    products = []
    for seed in range(300):
        project = Projection(5000, 64, seed)
        assert project.dim == 64
        # in parts, one of which has no gradient of its own
        a = project([x[:700].view(7, 100), x[700:]], [700, 4300])
        products.append(float(a @ project([y], [5000])))
    products = torch.tensor(products).double()
    exact = float(x.double() @ y.double())
    assert abs(float(products.mean()) - exact) < 4 * float(products.std()) / len(products) ** 0.5
    theory = ((float(x.square().sum() * y.square().sum()) + exact**2) / 64) ** 0.5
    assert float(products.std()) == pytest.approx(theory, rel=0.15)


def test_a_projection_is_its_hash_written_out() -> None:
    project = Projection(1000, 8, seed=5)  # 64 classes of 8: two rows, the last one padded
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    shift = [(int(row[0]) * -1) % 8 for row in project.source]
    assert set(shift) == set(range(8))  # classes are turned apart
    expected = torch.zeros(8)
    for j in range(1000):
        expected[(j % 8 + shift[j // 8 % 64]) % 8] += project.signs[j] * x[j]
    assert torch.allclose(project([x], [1000]), expected, atol=1e-5)
    assert torch.allclose(
        project([None, x[400:]], [400, 600]) + project([x[:400], None], [400, 600]), expected, atol=1e-5
    )
    whole = Projection(10, 64)
    assert torch.equal(whole([x[:4], None], [4, 6]), torch.cat([x[:4], torch.zeros(6)]))


def test_shards_interrupted_and_resumed_give_what_one_run_gives(model, items, tmp_path) -> None:
    maker = FeatureMaker(model, options(K=4, groups=2))
    whole = maker.open_store(tmp_path / "whole", items)
    assert maker.fill(whole, items)
    assert whole.complete
    parts = maker.open_store(tmp_path / "parts", items)
    assert not maker.fill(parts, items, 1, 2, show=lambda done, total: done == 2)  # stopped after two of its three
    assert parts.finished.tolist() == [False, True, False, True, False, False]
    again = FeatureMaker(model, maker.options)
    reopened = again.open_store(tmp_path / "parts", items)
    progress = []
    assert again.fill(reopened, items, 1, 2, show=lambda done, total: progress.append((done, total)))
    assert progress == [(3, 3)]
    assert again.fill(reopened, items, 0, 2)
    assert np.array_equal(whole.rows, reopened.rows)
    assert np.abs(whole.rows).min(axis=(1, 2)).max() > 0


def test_a_row_that_was_torn_is_made_again(model, items, tmp_path) -> None:
    maker = FeatureMaker(model, options())
    store = maker.open_store(tmp_path / "s", items)
    maker.fill(store, items)
    before = np.array(store.rows)
    store.rows[3, 0, 5] += 1.0
    store.flush()
    reopened = maker.open_store(tmp_path / "s", items)
    assert reopened.pending().tolist() == [3]
    maker.fill(reopened, items)
    assert np.array_equal(reopened.rows, before)


def test_a_store_of_anything_else_is_refused_and_kept(model, items, tmp_path, schedule) -> None:
    maker = FeatureMaker(model, options())
    maker.fill(maker.open_store(tmp_path / "s", items), items)
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    other = GradientModel.from_module(Scaling((1, 4, 4), seed=9), schedule)
    with pytest.raises(CarvError, match=r"was made with model = .*name another folder"):
        FeatureMaker(other, options()).open_store(tmp_path / "s", items)
    with pytest.raises(CarvError, match=r"made with options\.draws\.num_draws = 4, and now it is 8"):
        FeatureMaker(model, options(K=8)).open_store(tmp_path / "s", items)
    with pytest.raises(CarvError, match="is of other training images or captions"):
        maker.open_store(tmp_path / "s", TensorItems(items.z + 1))
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda whole: b"short",
    "empty": lambda whole: b"",
    "a bracket in the header": lambda whole: whole[:74] + b"{" + whole[75:],
    "no header's end": lambda whole: whole[:63] + whole[70:],
    "another shape": lambda whole: whole.replace(b"(6,", b"(5,"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_store_is_refused(kind: str, model, items, tmp_path) -> None:
    maker = FeatureMaker(model, options())
    maker.fill(maker.open_store(tmp_path / "s", items), items)
    for name in ("rows.npy", "done.npy"):
        whole = (tmp_path / "s" / name).read_bytes()
        changed = DAMAGE[kind](whole)
        assert changed != whole
        (tmp_path / "s" / name).write_bytes(changed)
        with pytest.raises(CarvError, match=r"damaged: .*; delete .*s, and it is made again"):
            maker.open_store(tmp_path / "s", items)
        (tmp_path / "s" / name).write_bytes(whole)
    maker.open_store(tmp_path / "s", items)


def test_a_gradient_that_is_not_finite_is_named_and_the_rest_is_kept(model, items, tmp_path) -> None:
    items.z[2, 0, 0, 0] = float("inf")
    maker = FeatureMaker(model, options())
    store = maker.open_store(tmp_path / "s", items)
    with pytest.raises(CarvError, match=r"'item-2' is not finite .*what is finished is kept"):
        maker.fill(store, items)
    assert maker.open_store(tmp_path / "s", items).finished.tolist() == [True, True, False, False, False, False]


def test_timesteps_are_of_the_range_that_was_asked_for(model) -> None:
    draws = GroupedDrawOptions(num_draws=8, min_step=10, max_step=19)
    maker = FeatureMaker(model, FeatureOptions(draws=draws, dim=None))
    groups = [g for i in range(20) for g in item_draws(f"{i}", "train", draws, maker.proposal, (1,), 0)]
    assert set(torch.cat([g.t for g in groups]).flatten().tolist()) == set(range(10, 20))


def test_a_seed_is_of_draws_and_of_the_projection(model, items) -> None:
    makers = [FeatureMaker(model, FeatureOptions(draws=GroupedDrawOptions(), dim=8, seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*(maker.projection.signs for maker in makers))
    same = makers[0].projection
    rows = [FeatureMaker(model, maker.options, projection=same).feature("x", items.latents(0)) for maker in makers]
    assert not torch.equal(*rows)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GroupedDrawOptions(num_draws=0), "num_draws is 0"),
        (lambda: GroupedDrawOptions(num_draws=6, groups=4), "equal groups"),
        (lambda: GroupedDrawOptions(num_draws=6, groups=2), "set num_draws to 8"),
        (lambda: GroupedDrawOptions(stratify="global"), "stratify is 'global'; it must be one of none, render"),
        (lambda: GroupedDrawOptions(min_step=5, max_step=4), "min_step is 5"),
        (lambda: FeatureOptions(output="mse"), "output is 'mse'"),
        (lambda: FeatureOptions(weighting="x"), "weighting is 'x'"),
        (lambda: FeatureOptions(dim=0), "dim is 0"),
        (lambda: dataclasses.replace(FeatureOptions(), seed=-1), "seed is -1"),
    ],
)
def test_options_that_cannot_be_meant_are_named(make, words) -> None:
    with pytest.raises(CarvError, match=words):
        make()
