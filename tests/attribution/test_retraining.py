"""The benchmark against retraining: its figures on small cases, and that the page has the table of the CSV."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import attribution_retraining as benchmark
import pytest
import torch
from attribution_digits import DIM, port_data, port_loss
from torch.nn.functional import one_hot

from carv_3d.core.schedule import NoiseSchedule

PAGE = Path(__file__).parents[2] / "docs" / "results" / "attribution.md"


@pytest.fixture
def data() -> benchmark.Data:
    """Twelve items and nine queries of noise."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(21, 1, 8, 8, generator=generator)
    label = one_hot(torch.arange(21) % 10, 10).float()
    return benchmark.Data(z[:12], label[:12], z[12:], label[12:])


def test_the_curve_s_area_is_the_share_of_pairs_in_order() -> None:
    wrong = torch.tensor([True, False, True, False, False])
    assert benchmark.area_under_curve(torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), wrong) == pytest.approx(5.5 / 6)
    assert benchmark.area_under_curve(-torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), wrong) == pytest.approx(0.5 / 6)


def test_models_of_the_same_begin_differ_by_their_items_alone(data: benchmark.Data) -> None:
    members = torch.ones(3, 12, dtype=torch.bool)
    members[2, :6] = False
    first, second, third = benchmark.train(data, members, 3, same=True)
    assert torch.equal(first.inner.weight, second.inner.weight)
    assert not torch.equal(first.inner.weight, third.inner.weight)
    other, another = benchmark.train(data, members[:2], 3)
    assert not torch.equal(other.inner.weight, another.inner.weight)
    losses = benchmark.losses_on([first, second, third], data, 20)
    assert losses.shape == (3, 9)
    assert torch.equal(losses[0], losses[1])


def test_d_trak_s_features_are_projected_gradients_of_the_output(data: benchmark.Data) -> None:
    torch.manual_seed(0)
    model, schedule = benchmark.LabelDenoiser(), NoiseSchedule.scaled_linear()
    rows = port_data(data.z, 4, 1000, data.label)
    features = benchmark.d_trak_features(model, schedule, rows)
    assert features.shape == (12, 1, DIM)
    z, eps, t, label = (part[7] for part in rows.tensors)
    assert t.tolist() == [0, 250, 500, 750]
    z_t = schedule.add_noise(z.expand(4, 1, 8, 8), eps, t)
    output = model(z_t, t, label.expand(4, 10)).square().mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(output, list(model.parameters()))])
    signs = (torch.randint(0, 2, (len(gradient), DIM), generator=torch.Generator().manual_seed(3)) * 2 - 1).float()
    torch.testing.assert_close(features[7, 0], gradient @ signs / DIM**0.5, rtol=1e-3, atol=1e-6)
    loss = port_loss(model, (dict(model.named_parameters()), dict(model.named_buffers())), schedule, z, eps, t, label)
    torch.testing.assert_close(loss, (model(z_t, t, label.expand(4, 10)) - eps).square().mean())


def test_differences_are_of_pairs_and_a_ridge_is_chosen_by_its_value() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, generator=generator).double()
    table = benchmark.rows("lds", {benchmark.OURS: (1.0, ours), "other": (2.0, ours - 0.5)}, "queries")
    assert table[0][6:9] == ("", "", "")
    assert table[1][6:9] == pytest.approx((0.5, 0.5, 0.5))
    assert table[1][4] < table[1][3] < table[1][5]  # type: ignore[operator]

    def fails(ridge: float) -> torch.Tensor:
        if ridge < 1:
            raise RuntimeError("singular")
        return torch.tensor([[-abs(ridge - 10.0)]])

    results = benchmark.tuned({"a": fails, "b": lambda ridge: torch.tensor([[float("nan")]])}, lambda s: float(s))
    assert results["a"].ridge == 10
    assert "b" not in results


def test_the_highest_scores_are_taken_out(data: benchmark.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.arange(9 * 12).view(9, 12).double()
    given: list[torch.Tensor] = []

    def train(data: benchmark.Data, members: torch.Tensor, steps: int, same: bool) -> torch.Tensor:
        assert same
        given.append(members)
        return members

    def losses(models: torch.Tensor, data: benchmark.Data) -> torch.Tensor:
        return 1 + (~models).float() @ torch.arange(12.0)[:, None].expand(12, 9)

    monkeypatch.setattr(benchmark, "train", train)
    monkeypatch.setattr(benchmark, "losses_on", losses)
    monkeypatch.setattr(benchmark, "SHARE", 1 / 6)
    options = SimpleNamespace(validation=1, removals=8, steps=1)
    table = benchmark.brittleness(data, {benchmark.OURS: benchmark.Result(1.0, scores)}, options)
    (members,) = given
    assert members[0].all()
    assert (~members[1]).nonzero().flatten().tolist() == [10, 11]
    assert (~members).sum(1).tolist() == [0, *[2] * 16]
    assert table[0][:4] == ("brittleness", benchmark.OURS, 1.0, pytest.approx(2100.0))


def test_the_page_has_the_table_of_the_csv() -> None:
    assert benchmark.markdown(benchmark.CSV) in PAGE.read_text(encoding="utf-8")
