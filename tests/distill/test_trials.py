"""Runs interleaved: the same readings however often they were stopped, and read off at equal seconds and equal
steps."""

import os
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_trials import Trial, equal_table, make_trials, origin, read_off, run_trials, start_from
from small import LinearUNet, small

import carv_3d
from carv_3d.compare.plots import write_plots
from carv_3d.compare.records import RunRecord
from carv_3d.compare.tables import compare
from carv_3d.distill.options import DistillOptions
from carv_3d.errors import CarvError

OPTIONS = DistillOptions(
    batch_size=2, num_draws=2, fake_updates=1, fake_draws=1, lr=1e-2, fake_lr=1e-2, guidance_scale=2.0
)
READINGS = (0.0, 4.0, 10.0)


def build(options):
    """With a clock of its own: a step takes K seconds."""
    d = small(**{k: getattr(options, k) for k in ("batch_size", "num_draws", "fake_updates", "fake_draws", "seed")})
    step = d.train_step
    d.train_step = lambda: {**step(), "seconds": float(options.num_draws)}
    return d


def weight(d):
    return {"weight": float(d.generator.unet.A.detach().sum())}


def trials(folder, evaluate=weight):
    return [
        Trial(folder / f"K{K}-{seed}", f"K = {K}", replace(OPTIONS, num_draws=K, seed=seed), build, evaluate)
        for seed in (0, 1)
        for K in (1, 2)
    ]


def test_every_trial_is_read_at_the_same_seconds_of_its_own(tmp_path) -> None:
    made = trials(tmp_path)
    order = []
    run_trials(made, READINGS, log=order.append)
    for trial in made:
        K = trial.options.num_draws
        assert [row["seconds"] for row in trial.rows] == [0.0, 4.0, 10.0]
        assert [row["steps"] for row in trial.rows] == [0.0, 4.0 / K, 10.0 / K]
        nfe_per_step = 2 + 3 * 2 * K + 2  # generator; teacher's pair and fake on K draws each; the fake's training
        assert [row["nfe"] for row in trial.rows] == [nfe_per_step * s / K for s in READINGS]
    names = [line.split(":")[0] for line in order]
    assert names[4:8] == names[:4][::-1]  # interleaved, there and back
    alone = build(made[0].options)
    for _ in range(10):
        alone.train_step()
    assert made[0].rows[-1]["weight"] == weight(alone)["weight"]


def test_a_resumed_comparison_ends_with_the_same_rows(tmp_path) -> None:
    whole = trials(tmp_path / "whole")
    run_trials(whole, READINGS, log=lambda line: None)
    for stop_at in (1, 3, 7):
        calls = []

        def stopping(d, calls=calls, stop_at=stop_at):
            calls.append(d)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return weight(d)

        with pytest.raises(KeyboardInterrupt):
            run_trials(trials(tmp_path / "cut", stopping), READINGS, log=lambda line: None)
    for folder in (tmp_path / "cut").iterdir():  # a kill within a save: only the one before the newest is there
        if folder.name == "K1-0":
            os.replace(folder / "checkpoint", folder / "checkpoint.previous")
    counted = []
    again = trials(tmp_path / "cut", lambda d: counted.append(d) or weight(d))
    run_trials(again, READINGS, log=lambda line: None)
    assert [t.rows for t in again] == [t.rows for t in whole]
    assert 0 < len(counted) < len(READINGS) * len(again)  # what was done is not done again


def test_methods_by_name_differ_in_their_draws_alone(tmp_path) -> None:
    made = make_trials(tmp_path, ["K1", "K16"], 2, OPTIONS, build, weight)
    assert [(t.method, t.options.seed) for t in made] == [("K1", 0), ("K16", 0), ("K1", 1), ("K16", 1)]
    assert [t.folder.name for t in made] == ["K1-0", "K16-0", "K1-1", "K16-1"]
    assert (made[0].options.num_draws, made[0].options.stratify) == (1, "none")
    assert (made[1].options.num_draws, made[1].options.stratify) == (16, "render")
    assert replace(made[0].options, num_draws=16, stratify="render") == made[1].options
    run_trials(made, (0.0, 16.0), log=lambda line: None)
    comparison = read_off(tmp_path, made)
    assert comparison.methods == ["K1", "K16"]
    assert {"curves.csv", "final.csv", "curves-weight.png"} <= {p.name for p in tmp_path.iterdir()}
    for methods, seeds in ((["K1", "K3"], 1), ([], 1), (["K1"], 0)):
        with pytest.raises(CarvError, match="K16-pairs"):
            make_trials(tmp_path, methods, seeds, OPTIONS, build, weight)


def test_another_run_is_not_resumed(tmp_path) -> None:
    trial = Trial(tmp_path, "a", OPTIONS, build, weight)
    trial.advance(0, 2.0)
    assert Trial(tmp_path, "a", OPTIONS, build, weight).rows == trial.rows
    with pytest.raises(CarvError, match="other options"):
        Trial(tmp_path, "a", replace(OPTIONS, lr=0.1), build, weight)
    with pytest.raises(CarvError, match="other options"):
        Trial(tmp_path, "a", OPTIONS, build, weight, made_with="400 images")


def test_a_comparison_at_other_seconds_is_refused_before_any_work(tmp_path) -> None:
    """A caption names the budget that was asked for: figures of another one must not stand under it."""
    whole = trials(tmp_path)
    run_trials(whole, READINGS, log=lambda line: None)
    before = [trial.rows for trial in whole]
    for readings in ((0.0, 4.0, 20.0), (0.0, 4.0, 10.0 + 1e-3, 20.0), (0.0, 4.0)):
        again = trials(tmp_path, lambda d: pytest.fail("it resumed"))
        with pytest.raises(CarvError, match="was read at other seconds: give the same --budget and --points, or ano"):
            run_trials(again, readings, log=lambda line: None)
        assert [trial.rows for trial in again] == before
    with pytest.raises(CarvError, match="was read at other seconds"):
        whole[0].advance(2, 11.0)
    assert not whole[0].advance(2, 10.0)
    longer = trials(tmp_path)  # the same readings and one more
    run_trials(longer, (*READINGS, 12.0), log=lambda line: None)
    assert [trial.rows[:3] for trial in longer] == before
    assert all(trial.rows[3]["seconds"] == 12.0 for trial in longer)


def test_figures_of_another_start_or_of_other_weights_differ() -> None:
    distillation, classifier = build(OPTIONS), torch.nn.Linear(2, 2)
    state = distillation.state_dict()
    origins = [origin(None, classifier), origin(state, classifier)]
    assert origins[0].startswith("started from the teacher, ")
    assert origins[1].startswith("started from step 0 of ")
    assert origin({**state, "generators": 1}, classifier) == origins[1]  # what a start does not take
    state = build(OPTIONS).state_dict()
    assert origin(state, classifier) == origins[1]
    with torch.no_grad():
        classifier.bias[0] += 1e-3
    origins.append(origin(state, classifier))
    origins.append(origin({**state, "step": 1}, classifier))
    origins.append(origin({**state, "average": {k: v + 1e-3 for k, v in state["average"].items()}}, classifier))
    assert len(set(origins)) == 5


def test_a_start_takes_the_networks_and_nothing_else() -> None:
    first, second = build(OPTIONS), build(replace(OPTIONS, seed=5))
    for _ in range(3):
        first.train_step()
    start_from(second, first.state_dict())
    for resumed, original in ((second.generator, first.generator), (second.fake, first.fake)):
        for a, b in zip(resumed.parameters(), original.parameters()):
            assert torch.equal(a, b)
    assert torch.equal(second.average.state["unet.A"], first.average.state["unet.A"])
    assert second.step == 3  # the average's warm-up is over where that was
    assert not second.generator_updates.state_dict()["optimizer"]["state"]
    before = first.average.state["unet.A"].clone()
    second.train_step()
    assert torch.equal(first.average.state["unet.A"], before)  # a copy
    state = first.state_dict()
    state["generator"] = LinearUNet(size=9).state_dict()
    with pytest.raises(CarvError, match="does not fit"):
        start_from(second, state)


def test_a_started_trials_steps_count_from_its_own_beginning(tmp_path) -> None:
    first = build(OPTIONS)
    for _ in range(3):
        first.train_step()
    state = first.state_dict()

    def started(options):
        d = build(options)
        start_from(d, state)
        return d

    trial = Trial(tmp_path, "a", OPTIONS, started, weight)
    run_trials([trial], READINGS, log=lambda line: None)
    assert trial.record().axes["steps"].tolist() == [0.0, 2.0, 5.0]
    again = Trial(tmp_path / "again", "a", OPTIONS, started, weight)
    run_trials([again], READINGS, log=lambda line: None)
    assert again.rows == trial.rows  # the state that both began with was left as it was


def test_the_table_is_read_at_what_all_reached(tmp_path) -> None:
    def record(method, seed, steps, offset):
        x = np.array([0.0, 1.0, 2.0])
        return RunRecord(method, "", seed, tmp_path, {"steps": steps * x, "seconds": 10 * x}, {"w2": offset + x})

    def table(seeds):
        runs = [record("K = 1", s, 100.0, 0.1 * s) for s in seeds] + [record("K = 16", s, 20.0, 1.0) for s in seeds]
        return equal_table(compare(runs, ["K = 1", "K = 16"]), ["w2"]).splitlines()

    text = table(range(5))
    assert text[0] == "| | at | K = 1 | K = 16 |"
    # at 40 steps K = 1 is at 0.4, K = 16 at its end
    for line, at, mean in ((text[2], "20 seconds", 2.2), (text[3], "40 steps", 0.6)):
        value, low, high = map(float, re.match(rf"\| w2 \| {at} \| (\S+) \[(\S+), (\S+)\] \| ", line).groups())
        assert value == pytest.approx(mean)
        assert mean - 0.2 < low < mean < high < mean + 0.2
        assert line.endswith("| 3.00 [3.00, 3.00] |")
    assert table(range(2))[2] == "| w2 | 20 seconds | 2.05 | 3.00 |"  # too few for an interval


@pytest.mark.parametrize(
    ("prompt", "seeds", "words"),
    [
        ("", 5, "5 run(s) each; band: 95 % bootstrap over seeds"),
        ("a mug", 5, "5 run(s) each, 1 prompt(s); band: 95 % bootstrap over prompts and seeds"),
        ("", 2, "2 run(s) each; no band below 5 runs"),
    ],
)
def test_curves_say_what_their_band_is_over(prompt, seeds, words, tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **more: titles.append(text))
    axes, x = {"steps": np.array([0.0, 1.0])}, np.array([1.0, 2.0])
    runs = [RunRecord("K = 1", prompt, seed, tmp_path, axes, {"w2": x + seed}) for seed in range(seeds)]
    paths = write_plots(tmp_path, compare(runs, ["K = 1"]))
    assert [p.name for p in paths] == ["curves-w2.png"]
    assert paths[0].stat().st_size > 1000
    assert words in titles[0]


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        ("gaussian", ["--budget", "0"], "--budget must be above 0"),
        ("gaussian", ["--budget", "nan"], "--budget must be above 0"),
        ("gaussian", ["--points", "0"], "--points at least 1"),
        ("gaussian", ["--samples", "1"], "--samples at least 2"),
        ("quality", ["--points", "0"], "--points at least 1"),
        ("variance", ["--model", "nosuchfolder"], "no diffusion model at"),
        ("variance", ["--model", "owner/name"], "has no prompts of its own"),
        ("variance", ["--settings", "8x1,8x1"], "named twice"),
    ],
)
def test_a_benchmark_says_what_cannot_be_before_it_works(benchmark, arguments, message, tmp_path, monkeypatch) -> None:
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    monkeypatch.setattr(StableDiffusionTeacher, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    file = Path(carv_3d.__file__).parents[1] / "benchmarks" / f"distill_{benchmark}.py"
    if not file.exists():
        pytest.skip("an installation without benchmarks")
    main = runpy.run_path(str(file))["main"]
    monkeypatch.setattr(sys, "argv", [file.name, *arguments])
    with pytest.raises(CarvError, match=message):
        main()
    assert list(tmp_path.iterdir()) == []
