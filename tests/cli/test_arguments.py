"""Every argument of a command arrives where it is used."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carv_3d.attribution.request import AttributeOptions
from carv_3d.cli import main as cli
from carv_3d.compare.methods import parse_methods
from carv_3d.compare.request import CompareOptions
from carv_3d.compare.sweep import Sweep
from carv_3d.config.request import DistillRequest, GenerateRequest, ViewOptions
from carv_3d.distill.variance_request import VarianceRequest as DistillVarianceRequest
from carv_3d.variance.request import VarianceRequest


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """given(function, words): what `carv WORDS` calls the function with, (args, kwargs)."""
    monkeypatch.chdir(tmp_path)

    def arguments(function: str, words: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        calls: list[Any] = []
        monkeypatch.setattr(f"carv_3d.{function}", lambda *args, **more: calls.append((args, more)) or 0)
        assert cli.main(shlex.split(words)) == 0
        (call,) = calls
        return call  # type: ignore[no-any-return]

    return arguments


def test_of_generate(given: Any) -> None:
    words = "generate 'a red mug' --config c.yaml --out o --seed 7 --resume num_draws=4"
    expected = GenerateRequest(
        prompt="a red mug", config=Path("c.yaml"), out=Path("o"), seed=7, resume=True, overrides=["num_draws=4"]
    )
    assert given("generate.run.generate", words) == ((expected, ViewOptions()), {})
    view = ViewOptions(view=True, view_address="::1", view_port=9)
    assert given("generate.run.generate", f"{words} --view --view-address ::1 --view-port 9") == ((expected, view), {})


def test_of_variance(given: Any) -> None:
    words = "variance c.yaml --prompt p --methods is,strat --renders 3,2 --draws 4 --at 5,6 --budget 7 --tolerance 0.2"
    more = " --seed 8 --out o --resume width=3"
    expected = VarianceRequest(
        source=Path("c.yaml"), prompt="p", methods=("is", "strat"), R=(2, 3), K=(4,), at=(5, 6), budget=7.0,
        tolerance=0.2, seed=8, out=Path("o"), resume=True, overrides=["width=3"],
    )  # fmt: skip
    assert given("variance.command.run", words + more) == ((expected,), {})


def test_of_compare_for_new_runs(given: Any) -> None:
    methods = ["base", "ours=num_draws=8"]
    words = "compare --prompt 'a red mug' --prompt 'a hat' --prompt 'a hat' --method base --method ours=num_draws=8"
    words += " --seeds 3 --steps 7 --points 5 --config c.yaml --clip CLIP --engine ray --workers 2 --baseline ours"
    words += " --score iou --out o data.width=32"
    (sweep, compared, where, command), _ = given("compare.command.run_sweep", words)
    assert sweep == Sweep(
        ["a red mug", "a hat"], parse_methods(methods), seeds=3, steps=7, points=5, config=Path("c.yaml"),
        common=["data.width=32"], clip="CLIP",
    )  # fmt: skip
    assert shlex.split(command) == ["carv", *shlex.split(words)]
    assert compared == CompareOptions(out=Path("o"), baseline="ours", scores=("iou",))
    assert (where.engine, where.address, where.workers) == ("ray", None, 2)
    words = "compare --prompt p --method a --method b --seconds 9 --engine ray --address h:1"
    (sweep, compared, where, _), _ = given("compare.command.run_sweep", words)
    assert (sweep.budget, sweep.steps, sweep.seeds, sweep.points, compared.out) == (9.0, None, 1, 20, None)
    assert (where.address, where.workers, compared.scores) == ("h:1", None, ())


def test_of_compare_for_runs_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def written(*args: Any) -> Any:
        calls.extend(args)
        return SimpleNamespace(notes=[])

    runs = [SimpleNamespace(metrics=["iou"])]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("carv_3d.compare.reading.read_runs", lambda words: calls.append(words) or runs)
    monkeypatch.setattr("carv_3d.compare.write.write_comparison", written)
    monkeypatch.setattr("carv_3d.compare.write.terminal_table", lambda comparison: [])
    words = ["compare", "a", "b=c", "--baseline", "b", "--score", "iou", "--out", "o"]
    assert cli.main(words) == 0
    assert calls == [["a", "b=c"], Path("o"), runs, "b", ("iou",), shlex.join(["carv", *words])]


def test_of_attribute(given: Any) -> None:
    words = "attribute 'a red mug' --model m --training-images data --items 9 --method trak --views 3 --prompt p"
    words += " --resize --store s --shard 1/2 --seed 5 --out o num_draws=12 dim=64"
    expected = AttributeOptions(
        query="a red mug", model="m", training_images="data", items=9, method="trak", views=3, prompt="p", resize=True,
        store=Path("s"), shard="1/2", seed=5, out=Path("o"), num_draws=12, dim=64,
    )  # fmt: skip
    assert given("attribution.command.attribute", words) == ((expected,), {})


def test_of_distill(given: Any) -> None:
    words = "distill carv-tiny --out o --seed 7 --resume lr=0.1"
    expected = DistillRequest(model="carv-tiny", out=Path("o"), seed=7, resume=True, overrides=["lr=0.1"])
    assert given("distill.command.distill", words) == ((expected,), {})
    assert given("distill.command.dry_run", f"{words} --dry-run") == ((expected,), {})


def test_of_the_variance_of_a_distillation(given: Any) -> None:
    words = "distill variance carv-tiny --settings 2x1,2x4 --pairs 9 --budget 7 --seed 3 --out o lr=0.1"
    expected = DistillVarianceRequest(
        model_or_run="carv-tiny", settings=("2x1", "2x4"), pairs=9, budget=7.0, seed=3, out=Path("o"),
        overrides=["lr=0.1"],
    )  # fmt: skip
    assert given("distill.variance_command.measure", words) == ((expected,), {})
    usual = given("distill.variance_command.measure", "distill variance carv-tiny")[0][0]
    assert (usual.pairs, usual.budget, usual.seed, usual.out) == (40, 600.0, None, None)
