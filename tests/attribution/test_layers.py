"""Gradients by layers: against autograd and the projection's matrices, in expectation, and in any company."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scaling_double import TensorItems
from torch import Tensor, nn

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions
from carv_3d.attribution.features import item_draws
from carv_3d.attribution.layers import LayerGradients, hooked_layers
from carv_3d.core.proposals import make_proposal
from carv_3d.errors import CarvError


class Small(nn.Module):
    """A linear layer that is called twice, a strided convolution, and what hooks cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 20, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 20)
        self.twice = nn.Linear(20, 20)
        self.grouped = nn.Conv2d(20, 20, 1, groups=2)
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True)
        self.out = nn.ConvTranspose2d(20, 2, 4, stride=2, padding=1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv(x)
        h += t.view(-1, 1, 1, 1) / 50  # in place, right behind the first of the layers
        h = self.norm(h)
        tokens = self.twice(self.twice(h.flatten(2).transpose(1, 2)).tanh())
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        result: Tensor = self.out(self.grouped(tokens.transpose(1, 2).reshape(h.shape)))
        return result


def small_losses(module: Small, x: Tensor) -> Tensor:
    return module(x, torch.arange(len(x))).square().mean((1, 2, 3))


def test_the_layers_that_can_be_followed_are_chosen_by_name(sd_teacher) -> None:
    assert list(hooked_layers(Small(), "layers")) == ["conv", "twice", "unused"]
    net = sd_teacher.network
    every, attention, cross = (hooked_layers(net, word) for word in ("layers", "attention", "cross-attention"))
    assert set(every) > set(attention) > set(cross)
    assert set(every.values()) == {m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert {name.split(".")[-1] for name in hooked_layers(net, "text")} >= {"to_k", "to_v"}
    assert all(".attn2." in name for name in cross)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert list(hooked_layers(tied, "layers")) == ["0"]
    assert hooked_layers(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "layers") == {}


def test_rows_are_each_samples_gradient_between_the_matrices() -> None:
    module, x = Small().requires_grad_(False), torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = LayerGradients(hooked_layers(module, "layers"), seed=5, side=6)
    rows = layers.rows(lambda: small_losses(module, x))
    assert rows.shape == (3, layers.num_features) == (3, 6 * 6 * 2 + 3 * 3)
    module.requires_grad_(True)
    for n in range(3):
        value = module(x[n : n + 1], torch.tensor([n])).square().mean()
        grads = torch.autograd.grad(value, [module.conv.weight, module.twice.weight])
        expected = [
            (q @ grad.flatten(1) @ p.flatten(1).T).flatten()
            for grad, (p, q) in zip(grads, (layers._sides["conv"], layers._sides["twice"]))
        ]
        expected.append(torch.zeros(9))  # of the layer that is not called
        whole = torch.cat(expected)
        assert float((rows[n] - whole).abs().max()) < 1e-5 * float(whole.abs().max())


def test_inner_products_are_kept_in_expectation() -> None:
    module, x = Small().requires_grad_(False), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    chosen = {"conv": module.conv, "twice": module.twice}
    exact_rows = LayerGradients(chosen, side=10**6).rows(lambda: small_losses(module, x)).double()
    exact = exact_rows @ exact_rows.T
    rows = torch.stack(
        [LayerGradients(chosen, seed, side=4).rows(lambda: small_losses(module, x)) for seed in range(400)]
    ).double()
    products = rows @ rows.transpose(1, 2)
    error = products.std(0) / len(products) ** 0.5
    assert ((products.mean(0) - exact).abs() / error).max() < 4.0
    assert float((products.std(0) / exact).max()) < 1.5  # and a single seed is of use


def options(parameters: str, K: int = 4, groups: int = 2, dim: int | None = None) -> FeatureOptions:
    return FeatureOptions(draws=GroupedDrawOptions(num_draws=K, groups=groups), dim=dim, parameters=parameters)


def test_a_feature_is_the_weighted_mean_of_its_draws(sd_teacher) -> None:
    model = GradientModel.from_teacher(sd_teacher)
    table = torch.linspace(0.2, 2.0, model.schedule.num_train_timesteps)
    proposal = make_proposal("weight", model.schedule, table)
    o = FeatureOptions(draws=GroupedDrawOptions(num_draws=4), weighting="sds", dim=None, parameters="cross-attention")
    maker = FeatureMaker(model, o, proposal=proposal)
    z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = sd_teacher.text_embeddings(["a red mug"])[0]
    feature = maker.feature("x", z, text)
    layers = hooked_layers(model.module, "cross-attention")
    weights = [layer.weight for layer in layers.values()]
    sides = LayerGradients(layers, o.seed)._sides
    for row, draws in zip(feature, item_draws("x", "train", o.draws, proposal, (4, 8, 8), 0)):
        with model.trainable():
            grads = torch.autograd.grad(maker.loss(z, text, draws), weights)
        whole = torch.cat([(q @ g.flatten(1) @ p.flatten(1).T).flatten() for g, (p, q) in zip(grads, sides.values())])
        assert float((row - whole).abs().max()) < 1e-5 * float(whole.abs().max())


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_company_changes_rounding_alone(sd_teacher, items, monkeypatch, tmp_path, batch) -> None:
    """In any batch, order or share a row is what it is alone."""
    z = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = GradientModel.from_teacher(sd_teacher)

    class Captioned(TensorItems):
        def condition(self, index: int) -> Tensor:
            return sd_teacher.text_embeddings(["a red mug" if index % 2 else "a dog"])[0]

    images = Captioned(z)
    maker = FeatureMaker(model, options("layers", dim=64))
    alone = torch.stack([maker.feature(images.key(i), images.latents(i), images.condition(i)) for i in range(5)])
    monkeypatch.setattr("carv_3d.attribution.features.BATCH", batch)
    for shards in (1, 2):
        store = maker.open_store(tmp_path / f"{batch} {shards}", images)
        for shard in reversed(range(shards)):
            assert maker.fill(store, images, shard, shards)
        rows = torch.from_numpy(store.rows.copy())
        assert float((rows - alone).abs().max()) < 1e-5 * float(alone.abs().max())
    assert not any(p.requires_grad for p in sd_teacher.unet.parameters())


def test_a_model_without_such_layers_has_the_gradients_of_all_its_parameters(model, items, tmp_path) -> None:
    for word in ("layers", "cross-attention"):
        maker, plain = FeatureMaker(model, options(word)), FeatureMaker(model, options("all"))
        assert maker.parameters == "all"
        assert torch.equal(maker.feature("x", items.latents(0)), plain.feature("x", items.latents(0)))
        assert maker.metadata(items) == plain.metadata(items)
        assert "parameters" not in plain.metadata(items)["options"]  # as in stores of earlier versions
    assert options("layers").stored()["parameters"] == "layers"


def test_the_backward_ends_at_the_first_of_the_layers(sd_teacher) -> None:
    """Nothing in front of it is differentiated, nor any parameter."""
    net = sd_teacher.network
    layers = {"conv_out": net.conv_out}
    before: list[bool] = []
    handle = net.up_blocks[-1].register_forward_hook(lambda m, given, out: before.append(out.requires_grad))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 7])
    text = sd_teacher.text_embeddings(["a red mug"] * 2)
    losses = lambda: sd_teacher.predict(z, t, text).square().mean((1, 2, 3))  # noqa: E731
    rows = LayerGradients(layers).rows(losses)
    handle.remove()
    assert before == [False]
    assert float(rows.abs().min(1).values.max()) > 0
    assert not net.conv_out._forward_hooks


def test_what_is_not_finite_is_named(sd_teacher) -> None:
    maker = FeatureMaker(GradientModel.from_teacher(sd_teacher), options("cross-attention", dim=64))
    text = sd_teacher.text_embeddings(["a red mug"])[0]
    good, bad = torch.zeros(4, 8, 8), torch.full((4, 8, 8), float("nan"))
    with pytest.raises(CarvError, match="the gradient of 'second' is not finite"):
        maker.features(["first", "second"], [good, bad], [text, text])


def test_a_layer_that_mixes_samples_is_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.layer(x.mean(0, keepdim=True))

    module = Mixing().requires_grad_(False)
    layers = LayerGradients(hooked_layers(module, "layers"))
    with pytest.raises(CarvError, match=r"layer 'layer' .*parameters=all"):
        layers.rows(lambda: module(torch.randn(3, 4)).square().mean(1))


def test_balanced_layers_of_a_kind_count_alike_and_so_do_the_kinds() -> None:
    torch.manual_seed(0)
    names = ("down.attn2.to_k", "up.attn2.to_v", "mid.attn2.to_k", "add_embedding.proj")
    chosen = {name: nn.Linear(20, 20).requires_grad_(False) for name in names}
    layers = LayerGradients(chosen, side=4)
    x = [10.0**n * torch.randn(50, 20) for n in range(4)]

    def rows() -> Tensor:
        return layers.rows(lambda: sum(layer(part).sum(1) for layer, part in zip(chosen.values(), x)))

    plain = rows()
    layers.balance(plain)
    parts = rows().split(16, 1)
    squares = torch.tensor([float(part.square().sum(1).mean()) for part in parts])
    assert squares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0], rel=1e-3)
    assert torch.allclose(parts[1] / parts[1].norm(), plain.split(16, 1)[1] / plain.split(16, 1)[1].norm())


def test_scales_depend_on_the_model_alone_and_a_query_shares_them(sd_teacher) -> None:
    o = dataclasses.replace(options("text", dim=64), balance=True)
    text = sd_teacher.text_embeddings(["a red mug"])[0]
    makers = [FeatureMaker(GradientModel.from_teacher(sd_teacher), o) for _ in range(2)]
    first, second = torch.zeros(4, 8, 8), torch.ones(4, 8, 8)
    row = makers[0].feature("x", first, text)
    makers[1].feature("y", second, text)
    assert torch.equal(makers[1].feature("x", first, text), row)
    query = FeatureMaker(makers[0].model, options("text", K=8, dim=64), "query")
    query.share_layers(makers[0])
    assert query._layers is makers[0]._layers
    unbalanced = FeatureMaker(makers[0].model, options("text", dim=64)).feature("x", first, text)
    assert not torch.allclose(unbalanced / unbalanced.norm(), row / row.norm(), atol=1e-3)
