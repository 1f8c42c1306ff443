"""`benchmarks/threestudio_states.py`: what counts as a run that was resumed, and as two ranks that agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks_test
import threestudio_states as states
import torch
from bench import replace_rows

from carv_3d.hosts.counterparts import COUNTERPARTS

TWO_A_BATCH = ["trainer.max_steps=50", "trainer.max_steps=6"]
"""As for control4d, whose system has two optimizers: three batches are six of Lightning's steps."""


def line(step: int, rank: int = 0, parameters: float = 1.0) -> dict[str, Any]:
    return {"step": step, "rank": rank, "parameters": parameters}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Has runs make these lines, one list after the other, and a checkpoint each; returns the words of each run."""

    def made(*given: list[dict[str, Any]]) -> list[list[str]]:
        words: list[list[str]] = []

        def start(checkout: Path, file: Path, workdir: Path, more: list[str], **_: str) -> Any:
            words.append(more)
            workdir.mkdir(exist_ok=True)
            (workdir / "last.ckpt").touch()
            return given[len(words) - 1], ""

        monkeypatch.setattr(states, "start", start)
        return words

    return made


def test_each_type_has_a_stock_configuration() -> None:
    assert set(states.CONFIGS) == set(COUNTERPARTS)


@pytest.mark.parametrize(("words", "last"), [([], 3), (TWO_A_BATCH, 6)])
def test_a_resumed_run_makes_as_many_batches_again(
    words: list[str], last: int, runs: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    steps = [last + step for step in states.due(words)]
    given = runs([], [line(step) for step in steps])
    assert states.resumed(tmp_path, tmp_path, tmp_path, words) == f"steps {last + 1} to {2 * last}"
    assert given[0][-2:] == [f"checkpoint.every_n_train_steps={last}", "use_timestamp=false"]
    assert given[1][-2:] == [f"resume={tmp_path / 'last.ckpt'}", f"trainer.max_steps={2 * last}"]
    runs([], [])
    assert states.resumed(tmp_path, tmp_path, tmp_path, words) == "no: steps []"


@pytest.mark.parametrize(("words", "last"), [([], 3), (TWO_A_BATCH, 6)])
def test_two_ranks_make_the_same_batches_with_equal_parameters(
    words: list[str], last: int, runs: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    both = [line(step, rank) for step in states.due(words) for rank in (0, 1)]
    runs(both)
    assert states.on_two_ranks(tmp_path, tmp_path, tmp_path, words) == f"steps 1 to {last}, equal parameters"
    runs([*both[:-1], line(last, 1, 1.5)])
    assert states.on_two_ranks(tmp_path, tmp_path, tmp_path, words) == "no: parameters [1.0, 1.5]"
    runs(both[:-1])
    assert states.on_two_ranks(tmp_path, tmp_path, tmp_path, words) == "no: a rank made other steps"


def test_a_batch_without_a_call_of_the_guidance_has_no_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that edit images have such batches on one rank and not on the other."""
    scene = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.constant_(scene.weight, -0.5)
    monkeypatch.setattr(ranks_test, "TIMESTEPS", [])
    assert ranks_test.facts(scene) == {"t": [], "parameters": 1.0}
    ranks_test.TIMESTEPS += [torch.tensor([3, 1]), torch.tensor([2])]
    assert ranks_test.facts(scene) == {"t": [3, 1, 2], "parameters": 1.0}
    assert ranks_test.facts(scene)["t"] == []


def test_rows_replace_those_of_the_same_key_and_leave_the_others(tmp_path: Path) -> None:
    file, order = tmp_path / "table.csv", ["b", "a"]

    def write(*rows: dict[str, Any]) -> str:
        replace_rows(file, ("type", "K", "ms"), rows, ("type", "K"), lambda row: order.index(row["type"]))
        return file.read_text()

    assert write({"type": "a", "K": 1, "ms": 5}, {"type": "a", "K": 4, "ms": 6}) == "type,K,ms\na,1,5\na,4,6\n"
    assert write({"type": "b", "K": 1, "ms": 7}, {"type": "a", "K": 4, "ms": 8}) == "type,K,ms\nb,1,7\na,1,5\na,4,8\n"
