"""Seeds that are independent of each other, and global generators that belong to one run."""

from __future__ import annotations

import torch

from carv_3d.core.seeds import OwnGlobals, batch_seed, keyed_generator, rank_seed, seed_for, step_seed

CPU = torch.device("cpu")


def test_seeds_are_those_that_earlier_versions_drew() -> None:
    assert seed_for(0, "guidance") == 8905300693538890825
    assert keyed_generator(3, "train", "a", 0).initial_seed() == 4846189935508527768
    assert step_seed(5, 7) == 5000022
    assert batch_seed(2, 3, 4) == 3012037
    assert [rank_seed(9, r) for r in (0, 1)] == [9, 10]


def test_each_purpose_key_step_batch_and_rank_has_its_own() -> None:
    assert len({seed_for(s, p) for s in (0, 1) for p in ("cameras", "background", "samples")}) == 6
    keys = [("a", 1), ("a1",), ("a", 2), ("b", 1)]
    assert len({keyed_generator(0, *key).initial_seed() for key in keys}) == 4
    assert len({step_seed(s, i) for s in range(3) for i in range(50)}) == 150
    assert len({batch_seed(s, b, p) for s in range(3) for b in range(-8, 20) for p in range(30)}) == 3 * 28 * 30


def test_own_globals_give_the_stream_of_a_seeded_process_and_leave_the_outside_alone() -> None:
    torch.manual_seed(11)
    expected = [torch.nn.Linear(2, 2).weight.detach(), torch.rand(3)]
    torch.manual_seed(1)
    outside = torch.get_rng_state()
    own = OwnGlobals(11, CPU)
    with own.in_use():
        weight = torch.nn.Linear(2, 2).weight.detach()
    assert torch.equal(torch.get_rng_state(), outside)
    with own.in_use():
        drawn = torch.rand(3)
    assert torch.equal(weight, expected[0])
    assert torch.equal(drawn, expected[1])


def test_own_globals_are_resumed_from_their_state_and_from_that_of_older_versions() -> None:
    own = OwnGlobals(4, CPU)
    with own.in_use():
        torch.rand(5)
    state = own.state_dict()
    with own.in_use():
        expected = torch.rand(5)
    for saved in (state, {**state, "numpy": ["MT19937"], "python": [3]}):
        again = OwnGlobals(0, CPU)
        again.load_state_dict(saved)
        with again.in_use():
            assert torch.equal(torch.rand(5), expected)
