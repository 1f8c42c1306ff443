"""What callers of the attribution library give by mistake: one sentence each, and nothing wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.options import FeatureOptions
from carv_3d.attribution.scores import bilinear, choose_ridge, cosine, relatif, tracin, trak
from carv_3d.attribution.store import RowStore
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

WRONG: Any = "a"
G = torch.Generator().manual_seed(0)
Q, F = torch.randn(2, 2, 5, generator=G), torch.randn(9, 2, 5, generator=G)
NAN, META = torch.full((1, 2, 5), float("nan")), F.to("meta")
SCORES = {"bilinear": bilinear, "cosine": cosine, "trak": lambda q, f: trak(q, f, 0.1)}
SCORES |= {"relatif": lambda q, f: relatif(q, f, 0.1)}


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize(
    ("queries", "items", "said"),
    [
        (Q.numpy(), F, "queries are a ndarray; they must be a torch tensor of real numbers"),
        (Q.tolist(), F, "queries are a list"),
        (Q.to("meta"), F, "queries are a tensor without data"),
        (Q, META, "items are a tensor without data; they must be a torch tensor or an array of real numbers"),
        (Q, F.to(torch.complex64), "items are a Tensor; they must be .* of real numbers"),
        (Q, F.numpy().astype(object), "items are a ndarray"),
        (Q[:0], F, "hold no feature"),
        (Q, F[:0], "hold no feature"),
        (Q[..., :0], F[..., :0], "hold no feature"),
        (Q, F[:, :0], "hold no feature"),
        (NAN, F, "the scores of item 0 are not finite"),
        (Q, torch.cat([F, NAN]), "the scores of item 9 are not finite|the kernel is not finite: items have features"),
    ],
)
def test_features_that_give_no_scores_are_named(name: str, queries: Any, items: Any, said: str) -> None:
    with pytest.raises(CarvError, match=said):
        SCORES[name](queries, items)


class Small(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(4, 4, 1), change

    def forward(self, z: Tensor, t: Tensor) -> Any:
        return self.change(self.layer(z))


def maker(module: Any) -> FeatureMaker:
    model = GradientModel.from_module(module, NoiseSchedule.scaled_linear())
    return FeatureMaker(model, FeatureOptions(dim=8, parameters="all"))


Z = torch.ones(4, 2, 2)
CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: bilinear(Q, F).top(2, 1), "query is 2 and count 1; there are 2 queries"),
    (lambda: bilinear(Q, F).top(-1, 1), "query is -1"),
    (lambda: bilinear(Q, F).top(0, -1), "count -1"),
    (lambda: bilinear(Q, F).top(0, WRONG), "count is 'a'; it must be a whole number"),
    (lambda: trak(Q, F, WRONG), "ridge is 'a'; it must be a number"),
    (lambda: trak(Q, F, float("inf")), "ridge is inf; it must be above 0 and finite"),
    (lambda: trak(Q, F * 0, 0.1), "the kernel holds zeros alone"),
    (lambda: trak(Q, F, 0.1, torch.eye(4)), r"gram must be a kernel of the items, a tensor \(5, 5\)"),
    (lambda: choose_ridge(F, ridges=[]), r"ridges are \[\]; they must be finite numbers above 0"),
    (lambda: choose_ridge(F, ridges=[float("nan")]), r"ridges are \[nan\]"),
    (lambda: choose_ridge(F, ridges=WRONG), "ridges are \\['a'\\]"),
    (lambda: choose_ridge(F, folds=0), "folds is 0 and limit 2048; they must be 2 at least"),
    (lambda: choose_ridge(F, folds=1), "folds is 1"),
    (lambda: choose_ridge(F, limit=1), "limit 1"),
    (lambda: choose_ridge(F, folds=WRONG), "folds is 'a'; it must be a whole number"),
    (lambda: choose_ridge(F * 0), "the features of the items are not finite, or all of them are zero"),
    (lambda: choose_ridge(F * float("nan")), "the features of the items are not finite"),
    (lambda: tracin([(Q, F)]), "each step of TracIn must be"),  # type: ignore[list-item]
    (lambda: tracin([(Q, F, float("nan"))]), "each step of TracIn must be"),
    (lambda: maker(nn.Identity()), "module is an Identity, which has no parameters"),
    (lambda: maker(3), "module is 3, which has no parameters; give a torch module"),
    (lambda: maker(Small(lambda x: (x,))).feature("a", Z), "the model predicted a tuple; it must be a tensor"),
    (lambda: maker(Small(lambda x: x[:, :1])).feature("a", Z), r"the model predicted \(\d, 1, 2, 2\)"),
    (lambda: maker(Small(lambda x: x.detach())).feature("a", Z), "the loss has no gradient, .*: let it predict"),
    (lambda: maker(Small()).features(["a", "b"], [Z], [None]), "latents is a list of 1; .* as many as keys"),
    (lambda: maker(Small()).features([], [], []), "keys is a list of 0; it must be a list of texts, one item at least"),
    (lambda: maker(Small()).features(WRONG, [Z], [None]), "keys is 'a'; it must be a list of texts"),
    (lambda: maker(Small()).features(["a"], [Z.numpy()], [None]), "latents is a list of 1; .* of torch tensors"),  # type: ignore
    (lambda: maker(Small()).features(["a", "b"], [Z, Z], [None, Z]), "conditions is a list of 2; .* None for each"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_a_mistake_is_one_sentence(call: Callable[[], object], said: str) -> None:
    with pytest.raises(CarvError, match=said):
        call()


def test_a_gradient_is_the_same_whatever_mode_the_caller_is_in() -> None:
    model = maker(Small())
    expected = model.feature("a", Z)
    with torch.no_grad():
        assert torch.equal(model.feature("a", Z), expected)
    with torch.inference_mode():
        assert torch.equal(model.feature("a", Z), expected)


@pytest.mark.parametrize("index", [None, True, -1, 3, 1.5, "a", slice(0, 2)])
def test_a_row_that_is_none_is_not_written(index: Any, tmp_path: Path) -> None:
    store = RowStore(tmp_path, {}, 3, (2,))
    for call in (lambda: store.write(index, np.ones(2, np.float32)), lambda: store.read(index)):
        with pytest.raises(CarvError, match=r"row .* is none of this store; its rows are 0 to 2"):
            call()
    assert not store.finished.any()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (np.array([1.0, np.nan]), "row 0 holds NaN, infinity or more than float32 can"),
        (np.array([1.0, 1e300]), "row 0 holds NaN, infinity or more"),
        (np.ones(2, complex), "row 0 is of type complex128; it must be of real numbers"),
        (np.array(["1", "2"]), "row 0 is of type <U1"),
        (np.ones(3), r"a row of shape \(3,\) came to a store of rows \(2,\)"),
        ([1.0, 2.0], "a row that is a list came to a store"),
    ],
)
def test_a_row_of_other_numbers_is_not_written(row: Any, said: str, tmp_path: Path) -> None:
    store = RowStore(tmp_path, {}, 3, (2,))
    with pytest.raises(CarvError, match=said):
        store.write(0, row)
    assert not store.finished.any()
    store.write(np.int64(2), torch.ones(2))  # type: ignore[arg-type]
    assert store.read(2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"count": -1}, "count is -1 and shape"),
        ({"count": 2.5}, "count is 2.5"),
        ({"shape": 5}, r"shape 5; they must be whole numbers"),
        ({"shape": (0,)}, r"shape \[0\]; they must be whole numbers, sides above 0"),
        ({"meta": None}, "meta is None; it must be a dict"),
        ({"meta": {"a": float("nan")}}, "meta must be plain data, its numbers finite"),
        ({"meta": {"a": torch.ones(1)}}, "meta must be plain data"),
        ({"keys": ["a"]}, "keys are 1 for 3 rows; they must be one text for each row, or none"),
        ({"keys": [1, 2, 3]}, "keys are 3 for 3 rows"),
    ],
)
def test_a_store_that_cannot_be_is_not_made(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CarvError, match=said):
        RowStore(**{"folder": tmp_path / "store", "meta": {}, "count": 3, "shape": (2,), **changed})
    assert not (tmp_path / "store").exists()
