"""`carv variance` as a user meets it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from variance_scene import SETTINGS, SMALL, made_up, small_trainer, teacher

from carv_3d.cli.main import main as cli
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.io.files import locked
from carv_3d.runs.progress import Display
from carv_3d.variance import command
from carv_3d.variance.benchmark import Batch, VarianceBenchmark
from carv_3d.variance.command import KeptBatches, VarianceRequest, by_timestep, go_to, measure, run
from carv_3d.variance.methods import BASELINE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "there is no nothing.yaml"),
        (["nothing.yaml", "--methods", "is+strut"], "no method 'strut' (in 'is+strut'); did you mean strat?"),
        (["nothing.yaml", "--methods", "is+adaptive"], "says is and adaptive, which exclude each other"),
        (["nothing.yaml", "--methods", "is+antithetic+control"], "in a pair eps cancels by itself"),
        (["nothing.yaml", "--methods", "is+cameras"], "give --renders of 2 or 4"),
        (["nothing.yaml", "--draws", "\u00b2"], "--draws is ['\u00b2']; it must be a list of numbers from 1"),
        (["nothing.yaml", "--draws", "1", "--methods", "antithetic"], "give an even number of --draws"),
        (["nothing.yaml", "--at", ",".join(map(str, range(65)))], "--at names 65 steps; name 64 at most"),
        (["nothing.yaml", "--draws", ",".join(map(str, range(1, 600)))], "make 2,397 settings, all of which are measu"),
        (["nothing.yaml", "--draws", "0"], "--draws is [0]; it must be a list of numbers from 1 to 1024"),
        (["nothing.yaml", "--budget", "0"], "--budget is 0"),
        (["nothing.yaml", "--tolerance", "2"], "--tolerance is 2.0; it must be a number above 0 and below 1"),
        (["nothing.yaml", "--methds", "is"], "unknown option --methds; did you mean --methods?"),
    ],
)
def test_mistakes_are_named_before_any_work(words: list[str], said: str, capsys: Any) -> None:
    assert cli(["variance", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_second_of_two_in_one_folder_is_refused(tmp_path: Path) -> None:
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text("system:\n  prompt_processor:\n    prompt: a red mug\n")
    out.mkdir()
    with locked(out), pytest.raises(CarvError, match="another run is at work in"):
        run(VarianceRequest(source=config, out=out, overrides=SMALL), teacher())
    assert list(out.iterdir()) == []


def test_the_command_measures_resumes_and_refuses(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("system:\n  prompt_processor:\n    prompt: a red mug\n")
    out = tmp_path / "out"
    given: dict[str, Any] = {
        "source": config, "at": (2, 4), "K": (2,), "methods": ("is",), "budget": 1e-6, "out": out,
        "overrides": SMALL,
    }  # fmt: skip
    assert run(VarianceRequest(**given), teacher()) == 0
    lines = list(csv.DictReader((out / "variance.csv").read_text().splitlines()))
    assert [(x["step"], x["R"], x["K"], x["method"]) for x in lines] == [
        (step, *rest) for step in ("2", "4") for rest in (("2", "1", "uniform"), ("1", "2", "is"))
    ]
    assert "the time is up" in capsys.readouterr().out
    first = json.loads((out / "batches.json").read_text())
    assert [len(b) for b in first["batches"].values()] == [2, 2]
    with pytest.raises(CarvError, match="or resume it with --resume"):
        run(VarianceRequest(**given), teacher())
    with pytest.raises(CarvError, match="figures of other settings"):
        run(VarianceRequest(**{**given, "K": (4,), "resume": True}), teacher())
    assert run(VarianceRequest(**{**given, "resume": True}), teacher()) == 0
    assert json.loads((out / "batches.json").read_text())["batches"] == first["batches"]  # nothing is measured twice
    (out / "blocks.json").touch()
    with pytest.raises(CarvError, match="was measured by an older carv_3d"):
        run(VarianceRequest(**{**given, "resume": True}), teacher())
    with pytest.raises(CarvError, match="is no run of carv generate"):
        run(VarianceRequest(**{**given, "source": tmp_path}), teacher())
    config.write_text("seed: 1\n")
    with pytest.raises(CarvError, match="has no prompt"):
        run(VarianceRequest(**{**given, "out": tmp_path / "new"}), teacher())


class MadeUp:
    """A benchmark whose batches are given, each of a second."""

    settings = SETTINGS

    def __init__(self, *v_in: tuple[float, float]) -> None:
        self.batches = made_up(*v_in)

    def batch(self, number: int) -> Batch:
        return self.batches[number]


def test_batches_are_measured_until_every_interval_is_tight_or_the_time_is_up(capsys: Any) -> None:
    alike, apart = [(8.0, 4.0)] * 30, [(8.0, 4.0)] * 7 + [(8.0, 6.0)] + [(8.0, 4.0)] * 40
    saved: list[int] = []

    def count(benchmark: Any, seconds: float, tolerance: float = 0.1, most: int = 99) -> int:
        batches: list[Batch] = []
        saved.clear()
        stopped = lambda: len(batches) == most  # noqa: E731
        measure(benchmark, batches, 7, tolerance, seconds, lambda: saved.append(len(batches)), Display(), stopped)
        return len(batches)

    assert count(MadeUp(*alike), 1e9) == 8
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "step 7: 8 batches, widest ECM ± 0% (aim 10%)" in capsys.readouterr().out
    assert 8 < count(MadeUp(*apart), 1e9, tolerance=0.05) < 40
    assert count(MadeUp(*apart), 1e9, tolerance=0.2) == 8
    assert count(MadeUp(*alike), 0.0) == 2
    assert "step 7: 2 batches, the time is up" in capsys.readouterr().out
    assert count(MadeUp(*alike), 1e9, most=3) == 3


def test_the_budget_is_shared_out_evenly_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 90 seconds a step has 30, and what earlier ones left over; every batch takes 9."""
    lefts: list[float] = []

    def measured(benchmark: Any, batches: list[Batch], step: int, tolerance: float, left: float, *_: Any) -> None:
        lefts.append(left)
        batches += made_up(*[(8.0, 4.0)] * 2)

    monkeypatch.setattr(command, "measure", measured)
    monkeypatch.setattr(command, "VarianceBenchmark", Mock(return_value=SimpleNamespace(settings=SETTINGS)))
    monkeypatch.setattr(command, "rows", lambda *_: [])
    for name in ("go_to", "by_timestep", "print_table", "rich_table", "write_csv"):
        monkeypatch.setattr(command, name, Mock())
    monkeypatch.setattr(command, "summary", lambda *_: [])
    request = VarianceRequest(source=Path("x"), at=(1, 2, 3), budget=90.0)
    kept = command.KeptBatches(tmp_path / "batches.json", {})
    command.measure_steps(request, small_trainer(), None, request.at, kept, Display(), lambda: False)
    assert lefts == [30.0, 60.0 - 18.0, 90.0 - 36.0]


def test_a_configuration_is_measured_early_in_the_middle_and_late() -> None:
    for steps, expected in ((200, [20, 100, 180]), (3, [1, 2, 3])):
        config = load_config(overrides=[f"trainer.max_steps={steps}"], prompt="a red mug")
        assert command.early_middle_late(config) == expected


def test_measuring_leaves_the_training_to_the_next_step_as_it_was(tmp_path: Path) -> None:
    plain, measured = small_trainer(), small_trainer()
    go_to(plain, 3, None, tmp_path / "plain", Display())
    go_to(measured, 1, None, tmp_path / "one", Display())
    VarianceBenchmark(measured, SETTINGS).batch(0)
    go_to(measured, 3, None, tmp_path / "three", Display())
    for a, b in zip(plain.field.parameters(), measured.field.parameters()):
        assert a.equal(b)
    again = small_trainer()
    again.train_step = Mock(side_effect=AssertionError)  # type: ignore[method-assign]
    go_to(again, 3, None, tmp_path / "three", Display())  # as it was kept
    with pytest.raises(CarvError, match="three is of step 3 in place of 4: delete it"):
        go_to(again, 4, None, tmp_path / "three", Display())
    assert again.step == 3
    assert all(a.equal(b) for a, b in zip(again.field.parameters(), measured.field.parameters()))


def test_a_run_is_measured_from_its_checkpoint_where_that_is_not_past_the_step(tmp_path: Path) -> None:
    trained = small_trainer()
    for _ in range(2):
        trained.train_step()
    state = trained.state_dict()
    for step, steps_made in ((2, 0), (3, 1), (1, 1)):
        trainer = small_trainer()
        begun = trainer.signal.update
        trainer.signal.update = (calls := Mock(side_effect=begun))  # type: ignore[method-assign]
        go_to(trainer, step, state, tmp_path / f"scene-{step}", Display())
        assert (trainer.step, calls.call_count) == (step, steps_made)


def test_the_size_by_timestep_is_of_the_range_where_the_run_is() -> None:
    trainer = small_trainer("system.guidance.max_step_percent=[0.9,0.5,10]", "system.guidance.min_step_percent=0.1")
    trainer.step = 10
    sizes = by_timestep(trainer, [Batch({}, {}, {}, [(t, 1.0) for t in range(100, 501)])])
    width = 401 / 12
    assert sizes.t == pytest.approx([100 + (i + 0.5) * width for i in range(12)])
    w = trainer.guidance.options.weights(trainer.teacher.schedule)
    assert sizes.weight[-1] / sizes.weight[0] == pytest.approx(float(w[467:501].mean() / w[100:133].mean()), rel=0.01)


@pytest.mark.parametrize("item", ["v_in", "s_out2", "seconds", "norms"])
def test_every_figure_of_a_batch_is_kept(tmp_path: Path, item: str) -> None:
    kept = KeptBatches(tmp_path / "batches.json", {"format": 3})
    first = Batch({"1,1,is": 0.1 + 0.2}, {"1,0,0": 1 / 3}, {"all": {"step": 9.5}}, [(7, 1.5)])
    for step, batches in ((4, [first]), (2, made_up((8.0, 4.0), (8.0, 6.0)))):
        kept.at(step).extend(batches)
    kept.save()
    again = KeptBatches(tmp_path / "batches.json", {"format": 3})
    assert again.by_step.keys() == kept.by_step.keys()
    for step, batches in kept.by_step.items():
        actual, expected = (json.loads(json.dumps([getattr(b, item) for b in x])) for x in (again.at(step), batches))
        assert actual == expected, step
    assert again.seconds([2, 4, 5]) == 9.5 + 2 * 9.0


def test_resumed_batches_are_numbered_on() -> None:
    """Their number seeds them: a batch that is made twice would count twice."""
    numbers: list[int] = []

    class Numbered(MadeUp):
        def batch(self, number: int) -> Batch:
            numbers.append(number)
            return super().batch(number)

    alike = [(8.0, 4.0)] * 30
    measure(Numbered(*alike), made_up(*alike[:3]), 7, 0.1, 1e9, lambda: None, Display())  # type: ignore[arg-type]
    assert numbers == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("norms", [[1]], "norms"),
        ("norms", [], "norms"),
        ("seconds", {"all": {"step": 1}}, "2,1,uniform"),
        ("seconds", {"all": {"step": "x"}}, "seconds"),
        ("v_in", {}, "2,1,uniform"),
        ("s_out2", {}, "2,0,0"),
    ],
)
def test_a_batch_that_was_changed_is_refused(tmp_path: Path, key: str, value: Any, named: str) -> None:
    path = tmp_path / "batches.json"
    kept = KeptBatches(path, {"format": 3}, [BASELINE])
    phases = {"step": 2.0, "denoise": 1.0}
    kept.at(1).append(Batch({BASELINE.key: 1.0}, {"2,0,0": 1.0}, {BASELINE.key: phases, "all": phases}, [(7, 1.5)]))
    kept.save()
    assert len(KeptBatches(path, {"format": 3}, [BASELINE]).at(1)) == 1
    stored = json.loads(path.read_text())
    stored["batches"]["1"][0][key] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(CarvError, match=rf"batches.json is damaged \(.*{named}.*\); choose another --out"):
        KeptBatches(path, {"format": 3}, [BASELINE])


def test_batches_of_different_phases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "batches.json"
    kept = KeptBatches(path, {"format": 3}, [BASELINE])
    for last in ("encode", "decode"):
        phases = {"step": 2.0, "denoise": 1.0, last: 0.5}
        kept.at(1).append(Batch({BASELINE.key: 1.0}, {"2,0,0": 1.0}, {BASELINE.key: phases, "all": phases}, [(7, 1.5)]))
    kept.save()
    with pytest.raises(CarvError, match=r"batches.json is damaged \(phases that are not in every batch\)"):
        KeptBatches(path, {"format": 3}, [BASELINE])
