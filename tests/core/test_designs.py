"""Designs: one number in each stratum, pairs that mirror each other, and ranks that share the strata out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carv_3d.core.designs import Design
from carv_3d.errors import CarvError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strata(u: Tensor, n: int) -> list[int]:
    return sorted((u.flatten() * n).floor().long().tolist())


def test_render_strata() -> None:
    u = Design(stratify="render").draw_u(50, 8, seeded())
    for render in u:
        assert strata(render, 8) == list(range(8))
    assert len(set(strata(u[:, 0], 400))) < 50  # the renders are independent of each other


@pytest.mark.parametrize("stratify", ["render", "global"])
def test_one_draw_per_render_is_stratified_over_the_renders(stratify: str) -> None:
    u = Design(stratify=stratify).draw_u(16, 1, seeded())
    assert strata(u, 16) == list(range(16))


def test_global_strata_are_fine_over_all_and_coarse_in_each_render() -> None:
    u = Design(stratify="global").draw_u(6, 4, seeded())
    assert strata(u, 24) == list(range(24))
    for render in u:
        assert strata(render, 4) == list(range(4))


@pytest.mark.parametrize("K", [1, 4])
def test_ranks_share_the_strata_out(K: int) -> None:
    shared = [seeded(7) for _ in range(3)]
    for _ in range(4):  # the generators stay in step
        parts = [
            Design(stratify="global").draw_u(2, K, seeded(rank), rank=rank, world_size=3, shared=shared[rank])
            for rank in range(3)
        ]
        assert strata(torch.cat(parts), 6 * K) == list(range(6 * K))
        assert all(strata(render, K) == list(range(K)) for part in parts for render in part)


def test_which_render_gets_which_stratum_is_drawn_afresh() -> None:
    g = seeded()
    places = torch.stack([(Design(stratify="global").draw_u(4, 1, g)[:, 0] * 4).floor() for _ in range(800)])
    for r in range(4):  # each render meets each stratum as often: 200 times, give or take 4 sigma
        counts = torch.bincount(places[:, r].long(), minlength=4)
        assert int((counts - 200).abs().max()) < 4 * (800 * 3 / 16) ** 0.5


@pytest.mark.parametrize("stratify", ["none", "render", "global"])
def test_pairs_share_t_and_mirror_eps(stratify: str) -> None:
    design = Design(stratify=stratify, antithetic=True)
    u = design.draw_u(5, 6, seeded())
    eps = design.draw_eps(5, 6, (3, 2, 2), seeded())
    assert torch.equal(u[:, 0::2], u[:, 1::2])
    assert torch.equal(eps[:, 0::2], -eps[:, 1::2])
    assert eps.shape == (5, 6, 3, 2, 2)
    assert len(u.unique()) == 15
    if stratify != "none":
        assert all(strata(render[0::2], 3) == [0, 1, 2] for render in u)
    if stratify == "global":
        assert strata(u[:, 0::2], 15) == list(range(15))


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("stratify", ["none", "render", "global"])
def test_each_draw_of_all_is_uniform_and_normal(stratify: str, antithetic: bool) -> None:
    design, g, n = Design(stratify=stratify, antithetic=antithetic), seeded(1), 3000
    for K in (2, 4):
        if stratify == "global":
            u = torch.stack([design.draw_u(2, K, g)[1] for _ in range(n)])
        else:
            u = design.draw_u(n, K, g)
        mean = u.mean(1)  # of a render: uniform draws in expectation, 1/2 within 4 standard errors
        assert abs(float(mean.mean()) - 0.5) < 4 * float(mean.std()) / n**0.5
        assert float(u.min()) >= 0
        assert float(u.max()) < 1
        eps = design.draw_eps(n, K, (2,), g)
        assert float((eps.mean(0)).abs().max()) < 4.5 / n**0.5
        assert float((eps.square().mean(0) - 1).abs().max()) < 4.5 * (2 / n) ** 0.5


def test_numbers_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = (Design(stratify="global").draw_u(3, 4, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Design(stratify="stratified"), "none, render, global"),
        (lambda: Design(stratify="none", antithetic="yes"), "true or false"),  # type: ignore[arg-type]
        (lambda: Design().draw_u(2, 0), "at least 1"),
        (lambda: Design().draw_u(2, -3), "at least 1"),
        (lambda: Design().draw_u(2, 1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: Design(antithetic=True).draw_u(2, 3), "set num_draws to 4"),
        (lambda: Design(antithetic=True).draw_eps(2, 1, (2,)), "come in pairs"),
        (lambda: Design(stratify="global").draw_u(2, 1, rank=0, world_size=2), "same state on every rank"),
        (lambda: Design(stratify="global").draw_u(2, 1, rank=2, world_size=2), "rank is 2"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(make: object, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        make()  # type: ignore[operator]


def test_the_renders_order_differs_between_the_columns() -> None:
    u = Design(stratify="global").draw_u(8, 4, seeded(2))
    places = [tuple(column) for column in (u * 4 % 1 * 8).floor().T.tolist()]  # of each render within a column
    assert len(set(places)) == 4


def test_one_process_leaves_the_shared_generator_alone() -> None:
    shared = seeded(5)
    u = Design(stratify="global").draw_u(3, 2, seeded(1), shared=shared)
    assert torch.equal(shared.get_state(), seeded(5).get_state())
    assert torch.equal(u, Design(stratify="global").draw_u(3, 2, seeded(1)))
