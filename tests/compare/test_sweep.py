"""Runs interleaved: each the run that it would be alone, by its training time, stopped and resumed at any moment."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.cli import main as cli
from carv_3d.compare import engine
from carv_3d.compare.command import run_sweep
from carv_3d.compare.methods import Method, parse_method
from carv_3d.compare.request import CompareOptions
from carv_3d.compare.scored_run import ScoredRun
from carv_3d.compare.sweep import Sweep, describe, open_folder
from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.generate.config import CONFIGS
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import locked
from carv_3d.io.tables import read_metrics, write_rows
from carv_3d.runs.checkpoint import load_checkpoint
from carv_3d.runs.progress import Display

SMALL = [
    "device=cpu", "geometry_type=voxel", "geometry.resolution=8", "num_samples_per_ray=8", "eval_samples_per_ray=8",
    "exporter.resolution=12", "texture_size=16",
    *(f"data.{side}=16" for side in ("width", "height", "eval_width", "eval_height")),
]  # fmt: skip
PROMPT = "a red mug"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("carv_3d.compare.write.write_plots", lambda *_: [])  # tried in test_reading.py
    torch.set_num_threads(1)  # sums over other numbers of threads differ in the last bit


@pytest.fixture
def common(sd_folder: Path) -> list[str]:
    return [*SMALL, f"pretrained_model_name_or_path={sd_folder}"]


def made(sweep: Sweep, out: Path) -> int:
    """The status of a comparison that is made here, in the folder."""
    return run_sweep(sweep, CompareOptions(out=out), EngineOptions())


def two_methods() -> list[Method]:
    single = ["system.guidance.num_draws=1", "system.guidance.antithetic=false"]
    return [Method("one", single), Method("two", ["system.guidance.num_draws=2"])]


def small_sweep(common: list[str], **more: Any) -> Sweep:
    return Sweep(**({"prompts": [PROMPT], "methods": two_methods(), "steps": 4, "points": 2, "common": common} | more))


def saved_field(folder: Path) -> torch.Tensor:
    grid: torch.Tensor = load_checkpoint(folder / "checkpoint")[0]["field"]["grid"]
    return grid


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_interleaved_runs_are_the_runs_that_they_would_be_alone(common: list[str]) -> None:
    sweep = small_sweep(common)
    assert made(sweep, Path("out")) == 0
    for method in sweep.methods:
        folder = sweep.folder(Path("out"), method, 0, 0)
        rows = read_metrics(folder / "metrics.csv")
        assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
        assert [r["step"] for r in rows if r["classifier_object"] == r["classifier_object"]] == [0, 2, 4]
        host = TextTo3D(sweep.configuration(method, 0, 0))
        for _ in range(4):
            host.train_step()
        assert torch.equal(host.field.state_dict()["grid"], saved_field(folder))
        assert read_result(folder)["steps"] == 4
    assert Path("out/compare.html").exists()
    written = {p: p.stat().st_mtime_ns for p in Path("out/runs").rglob("*")}
    again = small_sweep(common, prompts=[PROMPT], seeds=2)  # seeds may be added: what is done stays as it is
    assert made(again, Path("out")) == 0
    assert {p: p.stat().st_mtime_ns for p in written if p.is_file()}.items() <= written.items()
    assert len(list(Path("out/runs").glob("*/*/result.json"))) == 4


def test_equal_seconds_by_training_time(common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of "one" is said to take half a second, one of "two" a quarter; evaluation is slow and does not count."""
    turns: list[tuple[int, float]] = []
    step, scores = TextTo3D.train_step, ScoredRun.scores

    def timed(self: TextTo3D) -> dict[str, float]:
        return step(self) | {"seconds": 0.5 / self.config.system.guidance.num_draws}

    def slow(self: ScoredRun) -> dict[str, float]:
        turns.append((self.host.config.system.guidance.num_draws, self.clock))
        time.sleep(0.05)
        return scores(self)

    monkeypatch.setattr(TextTo3D, "train_step", timed)
    monkeypatch.setattr(ScoredRun, "scores", slow)
    monkeypatch.setattr(engine, "SLICE", 0.5)
    sweep = small_sweep(common, steps=None, budget=2.0, points=4)
    assert made(sweep, Path("out")) == 0
    results = {m.name: read_result(sweep.folder(Path("out"), m, 0, 0)) for m in sweep.methods}
    assert {name: (r["steps"], r["seconds"]) for name, r in results.items()} == {"one": (4, 2.0), "two": (8, 2.0)}
    assert turns == [(k, clock) for clock in (0.0, 0.5, 1.0, 1.5, 2.0) for k in (1, 2)]  # alternating


@pytest.mark.parametrize("fixed", [False, True])
def test_schedules_are_laid_over_the_budget(common: list[str], monkeypatch: pytest.MonkeyPatch, fixed: bool) -> None:
    """Steps get quicker: two of half a second, then four of a quarter; the schedules see the seconds alone, unless
    trainer.max_steps is given."""
    step = TextTo3D.train_step

    def timed(self: TextTo3D) -> dict[str, float]:
        return step(self) | {"seconds": 0.5 if self.step <= 2 else 0.25}

    monkeypatch.setattr(TextTo3D, "train_step", timed)
    whole = 40 if fixed else 200
    words = [*common, f"guidance.max_step_percent=[0.9,0.1,{whole}]", *(["trainer.max_steps=40"] if fixed else [])]
    sweep = small_sweep(words, steps=None, budget=2.0, points=1)
    assert made(sweep, Path("out")) == 0
    folder = sweep.folder(Path("out"), sweep.methods[0], 0, 0)
    host = TextTo3D(sweep.configuration(sweep.methods[0], 0, 0))
    assert host.config.trainer.max_steps == whole
    at = [0, 1, 2, 3, 4, 5] if fixed else [round(share * whole) for share in (0, 0.25, 0.5, 0.625, 0.75, 0.875)]
    rows = read_metrics(folder / "metrics.csv")[1:]
    assert [row["lr"] for row in rows] == pytest.approx([host.learning_rate(s) for s in at], rel=1e-5)
    ranges = [host.guidance.options.timestep_range(1000, s)[1] for s in at]
    assert [row["max_step"] for row in rows] == ranges
    assert len(set(ranges)) > 2


@pytest.mark.usefixtures("heeded_signals")
def test_a_sweep_resumed_in_the_middle_is_the_same(common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(small_sweep(common, points=1), Path("whole")) == 0
    step = TextTo3D.train_step
    done = {"steps": 0}

    def interrupted(self: TextTo3D) -> dict[str, float]:
        row = step(self)
        done["steps"] += 1
        if done["steps"] == 5:  # two steps warm up, one per method; the third of "one" that counts
            os.kill(os.getpid(), signal.SIGINT)
        return row

    monkeypatch.setattr(engine, "SLICE", 1e-9)  # a step each
    with monkeypatch.context() as patch:
        patch.setattr(TextTo3D, "train_step", interrupted)
        assert made(small_sweep(common, points=1), Path("cut")) == 130
    assert not list(Path("cut").rglob("result.json"))
    for method in two_methods():  # each was saved where it stood
        folder = small_sweep(common).folder(Path("cut"), method, 0, 0)
        assert load_checkpoint(folder / "checkpoint")[0]["step"] == read_metrics(folder / "metrics.csv")[-1]["step"] > 0
    assert made(small_sweep(common, points=1), Path("cut")) == 0
    for method in two_methods():
        folders = [small_sweep(common).folder(Path(out), method, 0, 0) for out in ("whole", "cut")]
        assert torch.equal(*map(saved_field, folders))
        assert [r["step"] for r in read_metrics(folders[1] / "metrics.csv")] == [0, 1, 2, 3, 4]


@pytest.fixture
def stub_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that change nothing: half a second each, a quarter with two draws. Returns the draws of each."""
    taken: list[int] = []

    def step(self: TextTo3D) -> dict[str, float]:
        self.step += 1
        taken.append(self.config.system.guidance.num_draws)
        return {"step": float(self.step), "seconds": 0.5 / taken[-1]}

    monkeypatch.setattr(TextTo3D, "train_step", step)
    monkeypatch.setattr(ScoredRun, "scores", lambda self: {})
    monkeypatch.setattr(ScoredRun, "finish", lambda self: None)
    monkeypatch.setattr(engine, "SLICE", 1e-9)  # a step each
    return taken


def test_seconds_resume_behind_a_stop(common: list[str], stub_steps: list[int]) -> None:
    """A resumed run has the training time left that it had, and not all of it again."""
    sweep, teachers, counts = small_sweep(common, steps=None, budget=2.0, points=1), engine.Teachers(), []
    for stopped in (lambda: len(stub_steps) >= 6, lambda: False):
        engine.run_group(sweep, Path("out"), (0, 0), teachers, None, Display(), stopped=stopped)
        counts.append((stub_steps.count(1), stub_steps.count(2)))
    assert counts == [(2, 4), (4, 8)]
    folder = sweep.folder(Path("out"), sweep.methods[1], 0, 0)
    assert [r["step"] for r in read_metrics(folder / "metrics.csv")] == list(range(9))


def test_turns_are_by_time_where_the_length_is_in_steps(common: list[str], stub_steps: list[int]) -> None:
    """A step of "one" takes twice as long, so "two" has two turns for each of its."""
    engine.run_group(small_sweep(common, points=1), Path("out"), (0, 0), engine.Teachers(), None, Display())
    assert stub_steps == [1, 2, 2, 1, 2, 2, 1, 1]


def test_models_are_kept_apart_by_what_they_are_loaded_with(common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.generate.teachers.load_teacher", lambda config: object())
    sweep, teachers = small_sweep(common), engine.Teachers()
    full = Method("full", ["system.guidance.half_precision_weights=false"])
    other = Method("other", ["system.guidance.pretrained_model_name_or_path=carv-tiny"])
    first, second, *rest = (teachers.load(sweep.configuration(m, 0, 0)) for m in (*sweep.methods, full, other))
    assert first is second
    assert len({id(teacher) for teacher in (first, *rest)}) == 3


def test_a_result_has_the_last_scores(common: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ScoredRun, "export_mesh", lambda self: {})
    sweep = small_sweep(common)
    run = ScoredRun(TextTo3D(sweep.configuration(sweep.methods[0], 0, 0)), tmp_path, Display(), sweep.length)
    scores = [{"iou": 0.1, "clip_score": 20.0}, {}, {"iou": 0.5}, {}]
    write_rows(run.metrics, run.columns, [{"step": float(i)} | score for i, score in enumerate(scores)])
    run.clock = 3.5
    run.finish()
    assert run.result == {"prompt": PROMPT, "seed": 0, "steps": 0, "seconds": 3.5, "iou": 0.5}


def test_another_sweep_in_the_same_folder_is_refused(common: list[str]) -> None:
    open_folder(small_sweep(common), Path("out"))
    for changed, key in (({"points": 3}, "points"), ({"methods": two_methods()[::-1][:1]}, "methods")):
        with pytest.raises(ValueError, match=f"has {key} = "):
            open_folder(small_sweep(common, **changed), Path("out"))
    for damaged in ("{", "[]", "\xff", "{}", '{"prompts": [null], "seeds": 1}', '{"prompts": ["a"], "seeds": true}'):
        Path("out/sweep.yaml").write_bytes(damaged.encode("latin-1"))
        with pytest.raises(CarvError, match=r"sweep\.yaml (is|does|has) no.*; choose another --out"):
            open_folder(small_sweep(common), Path("out"))
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("")
    with pytest.raises(ValueError, match="notes") as said:
        open_folder(small_sweep(common), Path("notes"))
    assert "damaged" not in str(said.value)


def test_a_configuration_that_comes_with_the_package_is_read_by_its_name() -> None:
    sweep = Sweep(prompts=["a red mug"], methods=[Method("a", []), Method("b", [])], config=Path("carv-tiny-quick"))
    shipped = (CONFIGS / "carv-tiny-quick.yaml").read_text()
    assert describe(sweep)["files"] == {"a": shipped, "b": shipped}


def test_short_keys_find_their_group() -> None:
    assert parse_method("m=lr=0.1,batch_size=2").overrides == ["system.optimizer.args.lr=0.1", "data.batch_size=2"]
    assert parse_method("m=a.yaml,num_draws=8").config == Path("a.yaml")
    words = parse_method("m=max_step_percent=[0.98,0.4,100],num_draws=8").overrides
    assert words == ["system.guidance.max_step_percent=[0.98,0.4,100]", "system.guidance.num_draws=8"]


def test_every_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--prompt", PROMPT, "--seconds", "5"]
    two = ["--method", "a", "--method", "b=num_draws=8"]
    for words, expected in (
        (["--prompt", PROMPT, *two, "--seconds", "0"], "--seconds is 0"),
        (["--prompt", PROMPT, *two, "--seconds", "-1"], "--seconds is -1"),
        (["--prompt", PROMPT, *two, "--seconds", "nan"], "--seconds is nan"),
        (["--prompt", PROMPT, *two], "--seconds N of training time, or --steps N"),
        (["--prompt", PROMPT, *two, "--seconds", "5", "--steps", "3"], "or --steps N"),
        ([*run, "--method", "a", "--method", "b=num_drawz=8"], "did you mean 'system.guidance.num_draws'?"),
        ([*run, "--method", "a", "--method", "b=resolution=8"], "geometry.resolution or system.exporter.resolution"),
        ([*run, "--method", "a", "--method", "b=num_draws=0"], "num_draws is 0"),
        ([*run, "--method", "a", "--method", "b=nothing.yaml"], "there is no config file nothing.yaml"),
        ([*run, "--method", "a", "--method", "b=8"], "'8' is no option"),
        ([*run, "--method", "a", "--method", "b=seed=3"], "use --seeds"),
        ([*run, "--method", "a", "--method", "A"], "would share a folder"),
        ([*run, "--method", "a", "--method", "a"], "would share a folder"),
        ([*run, "--method", "a"], "needs two methods"),
        (run, "--method NAME"),
        ([*two, "--seconds", "5"], "--method needs a prompt"),
        (["--prompt", "a red zeppelin", *two, "--seconds", "5"], "zeppelin"),
        (["--prompt", " ", *two, "--seconds", "5"], "the prompt is empty"),
        ([*run, *two, "--seeds", "0"], "--seeds is 0"),
        ([*run, *two, "--baseline", "c"], "the methods are: a, b"),
        ([*run, *two, "--address", "x:1"], "add --engine ray"),
        ([*run, *two, "lr"], "lr is a run that exists"),
        ([*run, *two, "points=3"], "unknown option 'points'"),
        ([*run, *two, "--score", "beauty"], "no run has logged"),
        (["x", *run, *two], "x is a run that exists"),
    ):
        assert cli.main(["compare", *words]) == 2, words
        err = capsys.readouterr().err
        (line,) = [line for line in err.splitlines() if line.startswith("carv: ")]
        assert expected in line, (words, line)
        assert os.listdir() == [], words


class Lines(Display):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def kill_a_worker(out: Path, killed: list[int]) -> None:
    """Kill one of this process's own Ray workers once a run of its is under way (five rows, no result)."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not killed:
        time.sleep(0.005)
        going = [p for p in out.glob("runs/*/*/metrics.csv") if len(read_metrics(p)) >= 5]
        if any(not (p.parent / "result.json").exists() for p in going):
            for pid in own_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break


def own_workers() -> list[int]:
    """Processes at work on a group that descend from this one."""
    parents, workers = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::_group"):
                workers.append(int(path.name))
        except (OSError, ValueError):
            continue

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in workers if ours(pid)]


@pytest.mark.slow
def test_on_ray_a_worker_that_is_killed_loses_nothing_and_repeats_nothing(common: list[str]) -> None:
    long: dict[str, Any] = {"seeds": 1, "steps": 16, "points": 8}
    out, display = Path("ray").resolve(), Lines()
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(out, killed), daemon=True)
    thread.start()
    where = EngineOptions(engine="ray", workers=2)
    assert run_sweep(small_sweep(common, **long), CompareOptions(out=out), where, display=display) == 0
    thread.join()
    assert len(killed) == 1
    resumed = [line for line in display.said if line.startswith("Resumed after step")]
    assert resumed, "the runs of the killed worker began again"
    assert all("step 0." not in line for line in resumed[:1])
    assert made(small_sweep(common, **long), Path("here")) == 0
    for method in two_methods():
        ray, here = (small_sweep(common).folder(o, method, 0, 0) for o in (out, Path("here")))
        rows = read_metrics(ray / "metrics.csv")
        assert [r["step"] for r in rows] == list(range(17))
        assert rows[-1]["nfe"] == read_metrics(here / "metrics.csv")[-1]["nfe"]
        assert torch.equal(saved_field(ray), saved_field(here))
    assert not (out / ".token").exists()


def test_a_damaged_result_is_one_sentence_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"steps": 3')
    run = ScoredRun.__new__(ScoredRun)
    run.folder = tmp_path
    with pytest.raises(CarvError, match=r"result\.json is not readable JSON .*; delete it, and the run is finished"):
        _ = run.result


def test_a_resumed_run_continues_its_training_time_and_its_steps(common: list[str]) -> None:
    sweep = small_sweep(common, steps=None, budget=1000.0)
    config = sweep.configuration(sweep.methods[0], 0, 0)
    teacher = engine.Teachers().load(config)

    def begun() -> ScoredRun:
        run = ScoredRun(TextTo3D(config, teacher), Path("run"), Display(quiet=True), sweep.run_length(sweep.methods[0]))
        run.begin("one")
        return run

    first = begun()
    assert (first.clock, first.host.step, first.pace) == (0.0, 0, None)
    first.advance(1e-9)
    first.advance(1e-9)
    first.pause()
    assert load_checkpoint(first.checkpoint)[0]["step"] == 2
    again = begun()
    assert again.host.step == 2
    assert again.clock == pytest.approx(first.clock, rel=1e-5) != 0


def test_a_run_at_which_another_is_at_work_is_refused(common: list[str]) -> None:
    sweep = small_sweep(common)
    folder = sweep.folder(Path("out"), sweep.methods[0], 0, 0)
    folder.mkdir(parents=True)
    with locked(folder), pytest.raises(CarvError, match="another run is at work in"):
        engine.run_group(sweep, Path("out"), (0, 0), engine.Teachers(), None, Display(quiet=True))


def test_of_a_group_only_what_is_not_done_is_run(common: list[str]) -> None:
    sweep = small_sweep(common, steps=1, points=1)
    assert made(sweep, Path("out")) == 0
    done, other = (sweep.folder(Path("out"), method, 0, 0) for method in sweep.methods)
    written = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    (other / "result.json").unlink()
    assert made(sweep, Path("out")) == 0
    assert (other / "result.json").exists()
    assert {p: p.stat().st_mtime_ns for p in written} == written
