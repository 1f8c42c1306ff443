"""The gradients that come with the package: packed, read, and used only for what they were made of; rounds of draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carv_3d.attribution import ahead as ahead_module
from carv_3d.attribution.ahead import ShippedAhead
from carv_3d.attribution.asking import MAX_ROUNDS, Asked, query_share
from carv_3d.attribution.images import TinyImages, tiny_size
from carv_3d.attribution.request import METHODS, AttributeOptions
from carv_3d.attribution.scores import bilinear, kernel, relatif
from carv_3d.attribution.scoring import Scorer, WhiteScorer
from carv_3d.attribution.shipped import DrawnImages, load, read, save
from carv_3d.errors import CarvError

KEY = {"model": "abc", "options": {"dim": 64}}


def rows(count: int = 40, dim: int = 64) -> np.ndarray:
    scale = 10.0 ** np.arange(-6, 2, 8 / count)[:count, None, None]
    return (scale * np.random.default_rng(0).standard_normal((count, 2, dim))).astype(np.float32)


def test_codes_keep_rows_to_a_fraction_of_their_size(tmp_path: Path) -> None:
    made = rows()
    save(tmp_path / "a.npz", made, np.arange(40), KEY, 3.0)
    read = load(KEY, path=tmp_path / "a.npz")
    assert not isinstance(read, str)
    assert read.ridge == 3.0
    lost = np.square(read.rows.numpy() - made).sum((1, 2)) / np.square(made).sum((1, 2))
    assert 0.008 < float(lost.mean()) < 0.02  # 1 / (12 * 2.5^2)
    few = load(KEY, 7, tmp_path / "a.npz")
    assert not isinstance(few, str)
    assert torch.equal(few.rows, read.rows[:7])


def test_rows_of_anything_else_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, rows(), [*range(20), *range(30, 50)], KEY, 3.0)
    assert "made with other values of model" in str(load({**KEY, "model": "abd"}, path=path))
    assert "made with other values of options.dim" in str(load({**KEY, "options": {"dim": 65}}, path=path))
    assert "Gradients of the first 21 images do not come" in str(load(KEY, 21, path))
    assert not isinstance(load(KEY, 20, path), str)
    assert "No gradients came" in str(load(KEY, path=tmp_path / "none.npz"))
    whole = path.read_bytes()
    for damaged in (whole[:-200], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises(CarvError, match="is damaged; install the package again"):
            load(KEY, path=path)


def test_rows_are_put_through_their_metric_ahead_where_the_options_are_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, options = tmp_path / "a.npz", AttributeOptions(query="a red mug")
    monkeypatch.setattr(ahead_module, "read", lambda count: read(count, path))
    made: list[str] = []

    def scorer(method: str, shipped: object) -> object:
        made.append(method)
        return object()

    monkeypatch.setattr(ahead_module, "shipped_scorer", scorer)
    stored = json.loads(json.dumps(options.features.stored()))
    key = {"model": "abc", "options": stored}
    save(path, rows(), np.arange(40), key, 3.0)
    right = ShippedAhead(options)
    right._made.result()
    assert made == ["d-trak-relatif"]  # before anything was asked for
    fitting = right.get(key)
    assert not isinstance(fitting, str)
    assert len(fitting[0].rows) == 40
    assert "made with other values of model" in str(right.get({**key, "model": "abd"}))
    few = ShippedAhead(replace(options, items=7)).get(key)
    assert not isinstance(few, str)
    assert len(few[0].rows) == 7
    made.clear()
    other = replace(options, num_draws=16)
    own = {"model": "abc", "options": json.loads(json.dumps(other.features.stored()))}
    assert "made with other values of options" in str(ShippedAhead(other).get(own))
    assert made == []  # nothing was made in vain
    path.write_bytes(b"")
    with pytest.raises(CarvError, match="is damaged"):
        ShippedAhead(options).get(key)


def test_images_drawn_one_by_one_are_those_of_the_training_set(tmp_path: Path) -> None:
    whole, drawn = TinyImages(tmp_path, 7, log=lambda text: None), DrawnImages([0, 4, 6])
    assert len(drawn) == 3
    for n, i in enumerate((0, 4, 6)):
        assert np.array_equal(drawn.image(n), whole.image(i))
        assert (drawn.caption(n), drawn.key(n)) == (whole.caption(i), whole.key(i))
        assert drawn.digest(n) == whole.digest(i)
    assert drawn.fingerprint() != DrawnImages([0, 4, 5]).fingerprint()


def test_a_model_of_larger_images_has_the_training_set_of_carv_tiny_128(tmp_path: Path) -> None:
    from carv_3d.tiny.dataset import build

    trained = build(tmp_path / "trained", 5, seed=3, size=128, log=lambda text: None)  # see its model card
    whole, drawn = TinyImages(tmp_path / "w", 5, lambda text: None, 128), DrawnImages([1, 4], 128)
    for n, i in enumerate((1, 4)):
        assert np.array_equal(whole.image(i), trained.rgb[i])
        assert np.array_equal(drawn.image(n), trained.rgb[i])
        assert drawn.digest(n) == whole.digest(i) != DrawnImages([1, 4]).digest(n)
    assert drawn.fingerprint() != DrawnImages([1, 4]).fingerprint()
    assert [tiny_size(size) for size in (64, 128, 32, 512)] == [64, 128, 64, 64]


def test_rows_put_through_once_score_as_relatif() -> None:
    generator = torch.Generator().manual_seed(0)
    q, f = torch.randn(1, 4, 9, generator=generator), torch.randn(30, 2, 9, generator=generator)
    f[..., 0] *= 5
    white, plain = WhiteScorer("relatif", f, 0.5), relatif(q, f, 0.5)
    assert torch.allclose(white(q).values, plain.values, atol=1e-5)
    assert torch.allclose(white(q).errors, plain.errors, atol=1e-5)
    scorer = Scorer("relatif", f, kernel(f), 0.5)
    assert torch.allclose(scorer(q).values, plain.values)
    assert scorer.ridge == 0.5
    assert Scorer("cosine", f).ridge is None
    assert torch.allclose(Scorer("d-trak-relatif", f)(q).values, relatif(q, f, 10.0).values)
    assert METHODS["d-trak-relatif"].output == METHODS["d-trak"].output == "mean-squared-l2-norm"


class Rounds(Asked):
    """A query whose rounds have noise of a given size."""

    def __init__(self, noise: float) -> None:
        self.rounds, self.share, self.noise = 0, float("nan"), noise
        self.generator = torch.Generator().manual_seed(1)

    def round(self) -> torch.Tensor:
        self.rounds += 1
        return torch.ones(3, 2, 8) + self.noise * torch.randn(3, 2, 8, generator=self.generator)


def test_rounds_end_when_the_querys_draws_make_a_tenth_of_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(200, 1, 8, generator=generator) + torch.randn(200, 2, 8, generator=generator)
    scorer = Scorer("cosine", items)
    quiet, loud, endless = Rounds(0.1), Rounds(0.7), Rounds(50.0)
    shown: list[int] = []
    assert quiet.until_stable(scorer).shape == (3, 2, 8)
    features = loud.until_stable(scorer, shown.append)
    assert endless.until_stable(scorer).shape[1] == 2 * MAX_ROUNDS
    assert 1 < loud.rounds < MAX_ROUNDS
    assert shown == list(range(1, loud.rounds + 1))
    assert features.shape == (3, 2 * loud.rounds, 8)
    assert loud.share < 0.1 < endless.share
    assert query_share(scorer, features.mean(0, keepdim=True), items) == pytest.approx(loud.share)


def test_the_querys_share_of_the_variance_by_hand() -> None:
    """Rows 2 and 6 of the query: variance of the mean 4; with columns 3 and 5 besides, 1 more."""
    query, items = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[1.0], [1.0]], [[1.0], [1.0]]])
    assert query_share(products(), query, items) == pytest.approx(1.0)  # the items have no noise
    noisy = torch.tensor([[[0.5], [1.5]], [[0.5], [1.5]]])
    own, whole = 1.0, 1.0 + 1.0 - 0.25  # var over rows 2/2, over columns 2/2, less that of the rest
    assert query_share(products(), query, noisy) == pytest.approx(own / whole)


def products() -> Scorer:
    scorer = Scorer("cosine", torch.ones(2, 2, 1))
    scorer._score = bilinear
    return scorer
