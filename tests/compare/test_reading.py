"""Run folders, carv's and threestudio's, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refusal
from tiny_host import PARSED

from carv_3d.cli import main as cli
from carv_3d.compare.reading import read_run, read_runs
from carv_3d.compare.records import MAX_LABEL, RunRecord, name_methods
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml, load_config
from carv_3d.io.files import locked
from carv_3d.report.page import page

NASTY = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>$\\frac"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def carv_run(
    folder: str, prompt: str = "a red mug", seed: int = 0, draws: int = 4, speed: float = 0.1, steps: int = 20
) -> Path:
    """A folder as `carv generate` leaves it; the classifier's score rises as 1 - exp(-speed seconds)."""
    path = Path(folder)
    path.mkdir(parents=True)
    overrides = [f"system.guidance.num_draws={draws}", "system.guidance.antithetic=false"]
    config = load_config(overrides=overrides, prompt=prompt, seed=seed)
    (path / "config.yaml").write_text(config_to_yaml(config))
    (path / "asset.glb").write_bytes(b"glTF-" + folder.encode())
    with (path / "metrics.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["step", "seconds", "snr", "classifier_object", "nfe", "renders"])
        for i in range(1, steps + 1):
            scored = 1 - np.exp(-speed * 0.5 * i) if i % 5 == 0 else ""
            writer.writerow([i, 0.5, 1 / i, scored, 2 * draws * i, i])
    return path


def trial(folder: str = "trial") -> Path:
    """A threestudio trial that was resumed at step 4, as Lightning's CSV logger writes it."""
    path = Path(folder)
    for version, steps in ((0, range(6)), (1, range(4, 8))):
        logs = path / "csv_logs" / f"version_{version}"
        logs.mkdir(parents=True)
        lines = ["epoch,lr-Adam/geometry,step,train/grad_norm,train_params/lambda_sds"]
        for step in steps:
            lines += [f",0.01,{step},,", f"0,,{step},{10 * version + step},1.0"]
        (logs / "metrics.csv").write_text("\n".join(lines) + "\n")
    (path / "configs").mkdir()
    (path / "configs" / "parsed.yaml").write_text(PARSED)
    return path


def test_a_run_of_carv_is_read_with_its_training_time() -> None:
    run = read_run(carv_run("x", seed=3))
    assert (run.prompt, run.seed, run.method) == ("a red mug", 3, "")
    assert run.axes["seconds"].tolist() == [0.5 * i for i in range(1, 21)]
    assert run.axes["nfe"][-1] == 160
    x, y = run.series("classifier_object", "seconds")
    assert x.tolist() == [2.5, 5.0, 7.5, 10.0]
    assert y[-1] == pytest.approx(1 - np.exp(-1))


def test_training_time_continues_behind_a_row_without_seconds() -> None:
    path = carv_run("x") / "metrics.csv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(",0.5,", ",,", 1)
    path.write_text("\n".join(lines) + "\n")
    run = read_run(Path("x"))
    assert run.axes["seconds"].tolist() == [0.5, 1.0, 1.0, *(1.0 + 0.5 * i for i in range(1, 18))]
    assert np.isnan(run.metrics["seconds_per_step"]).tolist() == [i == 2 for i in range(20)]


def test_a_trial_of_threestudio_is_read_over_its_parts() -> None:
    run = read_run(trial())
    assert (run.prompt, run.seed) == ("a hamburger", 7)
    x, y = run.series("grad_norm", "steps")
    assert x.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert y.tolist() == [0, 1, 2, 3, 14, 15, 16, 17]  # what was done again replaces what was done before
    assert run.axes["renders"].tolist() == (2 * x).tolist()
    assert run.axes["nfe"].tolist() == (4 * x).tolist()  # cond and uncond
    assert sorted(run.metrics) == ["grad_norm"]
    assert any("no clock" in note for note in run.notes)


def test_a_trial_of_the_first_version_is_read_by_todays_names() -> None:
    for path in trial().glob("csv_logs/*/metrics.csv"):
        path.write_text(path.read_text().replace("grad_norm", "unet_rows"))
    assert read_run(Path("trial")).axes["nfe"].tolist() == [0, 1, 2, 3, 14, 15, 16, 17]


def test_the_first_row_of_a_compared_run_is_no_step() -> None:
    path = carv_run("x") / "metrics.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, "0,0,,0.1,0,0", *lines]) + "\n")  # scored before the first step
    run = read_run(Path("x"))
    assert run.axes["seconds"][:3].tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(run.metrics["seconds_per_step"]).tolist() == [True] + [False] * 20


def test_a_run_has_its_label_unless_another_is_given() -> None:
    (carv_run("x") / "method.json").write_text('{"method": "its own"}')
    assert (read_run(Path("x")).method, read_run(Path("x"), "given").method) == ("its own", "given")


def test_what_a_resumed_trial_had_not_done_again_is_forgotten() -> None:
    logs = trial() / "csv_logs" / "version_1" / "metrics.csv"
    logs.write_text("\n".join(logs.read_text().splitlines()[:3]) + "\n")  # step 4 alone, of 0 to 5 before
    run = read_run(Path("trial"))
    assert run.axes["steps"].tolist() == [1, 2, 3, 4, 5]
    assert run.metrics["grad_norm"].tolist() == [0, 1, 2, 3, 14]


def test_the_nfe_under_perp_neg_are_not_guessed() -> None:
    config = trial() / "configs" / "parsed.yaml"
    config.write_text(PARSED.replace("prompt: a hamburger", "prompt: a hamburger, use_perp_neg: true"))
    run = read_run(Path("trial"))
    assert "nfe" not in run.axes
    assert "renders" in run.axes


def fake_tensorboard(monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[tuple[int, float, float]]]) -> None:
    """A reader of event files that gives (step, wall time, value) by the folder's name."""

    class Loader:
        def __init__(self, path: str) -> None:
            self.rows = parts[Path(path).parent.name]

        def Load(self) -> Any:
            for step, wall, number in self.rows:
                value = types.SimpleNamespace(tag="train/snr", simple_value=number, HasField=lambda _: False)
                summary = types.SimpleNamespace(value=[value])
                yield types.SimpleNamespace(step=step, wall_time=wall, summary=summary)

    name = "tensorboard.backend.event_processing.event_file_loader"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(EventFileLoader=Loader))


def test_tensorboard_gives_the_clock_without_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    path = trial()
    for version in (0, 1):
        (path / "tb_logs" / f"version_{version}").mkdir(parents=True)
        (path / "tb_logs" / f"version_{version}" / "events.out.tfevents.1").touch()
    parts = {
        "version_0": [(s, 1000.0 + 2 * s, 1.0) for s in range(6)],
        "version_1": [(s, 9000.0 + 3 * (s - 4), 2.0) for s in range(4, 8)],  # resumed an hour later
    }
    fake_tensorboard(monkeypatch, parts)
    run = read_run(path)
    assert run.axes["seconds"].tolist() == [2, 4, 6, 8, 11, 14, 17, 20]
    assert run.metrics["snr"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert run.metrics["grad_norm"].tolist() == [0, 1, 2, 3, 14, 15, 16, 17]  # the CSV's


def test_event_files_of_tensorboard_itself() -> None:
    from tensorboard.summary import Writer

    path = Path("only")
    logs = Writer(str(path / "tb_logs" / "version_0"))
    for step in range(3):
        logs.add_scalar("train/snr", 0.5 * step, step)
        logs.add_scalar("lr-Adam/geometry", 0.01, step)
    logs.close()
    run = read_run(path)
    assert run.metrics["snr"].tolist() == [0.0, 0.5, 1.0]
    assert list(run.metrics) == ["snr"]
    assert np.isfinite(run.axes["seconds"]).all()


def test_methods_are_named_by_what_differs() -> None:
    folders = [carv_run("a", draws=1), carv_run("b", draws=1, seed=1), carv_run("c", draws=8)]
    runs = read_runs([str(f) for f in folders])
    assert [run.method for run in runs] == ["num_draws=1", "num_draws=1", "num_draws=8"]
    named = read_runs(["mine=a", "b", "c"])
    assert [run.method for run in named] == ["mine", "num_draws=1", "num_draws=8"]


def test_folders_of_one_name_and_other_settings_are_two_methods() -> None:
    given = [record("x/run", a="1"), record("y/run", a="2"), record("x/again", seed=1, a="1")]
    long = "v" * MAX_LABEL
    runs = [replace(run, settings={key: long + value for key, value in run.settings.items()}) for run in given]
    assert [run.method for run in name_methods(runs)] == ["x/run", "y/run", "x/run"]
    assert [run.method for run in name_methods(runs[::2])] == ["runs", "runs"]
    assert [run.method for run in name_methods([replace(runs[0], method="runs"), runs[1]])] == ["runs", "run"]
    alike = [replace(run, folder=Path(top) / long) for top, run in zip("ab", runs)]
    with pytest.raises(CarvError, match=f"cannot be named by their folders; name each: NAME=a/{long}"):
        name_methods(alike)


def record(folder: str, seed: int = 0, **settings: str) -> RunRecord:
    """A run without a name."""
    return RunRecord("", "a", seed, Path(folder), {}, {}, {f"system.{key}": value for key, value in settings.items()})


def test_a_comparison_of_folders_leaves_tables_images_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        carv_run(f"slow{i}", seed=i, speed=0.1)
        carv_run(f"quick{i}", seed=i, speed=0.2)
    words = [f"{name}={name}{i}" for name in ("slow", "quick") for i in range(5)]
    assert cli.main(["compare", *words, "--out", "out"]) == 0
    assert "quick: classifier_object, seconds to the baseline's final 0.632: 0.5" in capsys.readouterr().out
    with Path("out/time_to_target.csv").open() as handle:
        (row,) = [r for r in csv.DictReader(handle) if r["axis"] == "seconds"]
    assert row["method"] == "quick"
    assert float(row["ratio"]) == pytest.approx(0.5, abs=0.05)  # five seconds of ten, linear between readings
    assert float(row["reached"]) == 1.0
    from PIL import Image

    assert min(Image.open("out/curves-classifier-object.png").size) > 300
    text = Path("out/compare.html").read_text()
    assert text.count("<model-viewer ") == 2  # of five seeds the first
    assert "8 further run(s)" in text
    assert re.search(r"<td>0\.5\d \[0\.5\d, 0\.5\d\]</td><td>5 \+ 5</td>", text)  # the ratio and its runs
    assert "<td>0.632 [0.632, 0.632]</td><td>5</td><td>20</td><td>10</td>" in text
    with Path("out/curves.csv").open() as handle:
        last = [r for r in csv.DictReader(handle) if (r["metric"], r["axis"]) == ("classifier_object", "seconds")][-1]
    assert (last["method"], float(last["x"])) == ("quick", 10.0)
    assert float(last["mean"]) == pytest.approx(1 - np.exp(-2), abs=1e-4)
    assert refusal(capsys, "compare", *words, "--out", "out").endswith("choose another --out")


def test_the_page_is_offline_and_whatever_a_user_wrote_is_text() -> None:
    for name in ("a", "b"):
        carv_run(name, prompt=NASTY)
    assert cli.main(["compare", f"{NASTY.replace('=', '')}=a", "b=b", "--out", "out", "--score", "snr"]) == 0
    text = re.sub(r'<script type="module">.*?</script>', "", Path("out/compare.html").read_text(), flags=re.DOTALL)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert re.findall(r'(?:src|href|url|poster)\s*[=(]\s*["\']?(?!data:)[^"\'\s>]+', text.replace("src=x", "")) == []
    assert re.findall(r"https?://", text) == []
    assert "default-src 'none'" in page("t", "b", viewer=False)


def test_every_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    good = str(carv_run("good"))
    Path("empty").mkdir()
    carv_run("other")
    Path("link").symlink_to(good)
    carv_run("tree", prompt="a green tree")
    (carv_run("headless") / "metrics.csv").write_text("snr,ess\n1,2\n")
    (carv_run("hollow") / "metrics.csv").write_text("")
    (carv_run("cut") / "metrics.csv").write_text("step,seconds,snr\n1,0.5")
    (carv_run("binary") / "metrics.csv").write_bytes(b"\xff\xfe\x00\x81")
    (carv_run("unknown") / "config.yaml").unlink()
    (carv_run("emptied") / "config.yaml").write_text("")
    (carv_run("bitten") / "method.json").write_text('{"method": ')
    (trial("torn") / "configs" / "parsed.yaml").write_text("a: [")
    (Path("lost") / "csv_logs").mkdir(parents=True)
    for words, expected in (
        (["nowhere"], "there is no folder nowhere"),
        ([f"{good}/metrics.csv"], "is a file"),
        (["empty"], "empty is no run"),
        (["headless"], "no column 'step'"),
        (["hollow"], "empty or truncated"),
        (["cut"], "empty or truncated"),
        (["binary"], "is not text in UTF-8"),
        (["unknown"], "unknown/config.yaml is missing; restore it, which says what the run is, or name another run"),
        (["emptied"], "emptied/config.yaml is empty, so it is not what carv generate wrote; restore it, or name"),
        (["bitten"], "name the method yourself: NAME=bitten"),
        (["torn"], "not readable YAML"),
        (["lost"], "empty or truncated"),
        ([f"a={good}", "b=tree"], "a comparison is of the same prompts"),
        ([f"a={good}", "a=other", "b=tree"], "a has no run of 'a green tree'"),
        ([f"a={good}", "a=tree", "b=other"], "b has no run of 'a green tree'"),
        ([f"a={good}", "b=./link"], "link is one run and is named twice, 'a' and 'b'; name it once"),
        (["=good"], "'=good' is to be NAME=FOLDER: '' is no usable name of a method"),
        ([good, f"b={good}"], "good is one run and is named twice, without a name and 'b'; name it once"),
        ([good, "--baseline", "x"], "the methods are: runs"),
        ([good, "--score", "beauty"], "no run has logged"),
        ([good, "--budget", "3"], "--seconds is for new runs"),
        ([], "there is nothing to compare"),
    ):
        assert expected in refusal(capsys, "compare", *words), words


def test_a_torn_last_line_is_left_out_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    path = carv_run("x") / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # "20,0.5,0.05,0.63,160,20": the renders lost a digit
    run = read_run(Path("x"))
    assert run.axes["renders"].tolist() == list(range(1, 20))
    path.write_bytes(whole[:-12])
    assert cli.main(["compare", "x", "--out", "out"]) == 0
    assert "1 damaged line(s) left out" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_is_named_twice_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    carv_run("sweep/runs/one/0")
    carv_run("other", seed=1)
    Path("link").symlink_to("other")
    runs = read_runs(["other", "sweep", "link", "sweep/runs/one/0", "./sweep/../other"])
    assert [str(run.folder) for run in runs] == ["other", "sweep/runs/one/0"]
    assert runs[0].notes == ["link is named twice and counts once", "sweep/../other is named twice and counts once"]
    assert cli.main(["compare", "other", "link", "--out", "out"]) == 0
    assert "Note: link is named twice and counts once." in " ".join(capsys.readouterr().out.split())


def test_a_copy_of_a_run_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    table = carv_run("run") / "metrics.csv"
    table.write_text(table.read_text().replace("\n7,0.5,", "\n7,0.625,"))
    shutil.copytree("run", "copy")
    (run,) = read_runs(["run", "copy"])
    assert run.notes == ["copy is a copy of run and counts once"]
    assert "copy is a copy of run, and they are named, 'a' and 'b'" in refusal(capsys, "compare", "a=run", "b=copy")
    Path("copy/metrics.csv").write_text(table.read_text().replace("\n7,0.625,", "\n7,0.75,"))
    assert len(read_runs(["run", "copy"])) == 2  # other times: another run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[::-1], "step 19 after step 20"),
        (lambda rows: [*rows, *rows], "step 1 after step 20"),
        (lambda rows: [row for row in rows for _ in range(2)], "step 1 after step 1"),
    ],
)
def test_steps_that_do_not_rise_are_refused(change: Any, said: str) -> None:
    path = carv_run("x") / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *change(rows)]) + "\n")
    with pytest.raises(CarvError, match=f"x/metrics.csv has {said}, and a run's steps rise; restore it or leave"):
        read_run(Path("x"))


def test_a_name_that_no_image_could_show_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    good = carv_run("good")
    for name in ("x" * 81, "a\x07b", "a\nb", " ", "a\udc80b"):
        text = refusal(capsys, "compare", f"{name}={good}", "--out", "out")
        assert "is no usable name of a method; take 1 to 80 printable characters" in text, ascii(name)
        (good / "method.json").write_text(json.dumps({"method": name}))
        assert "good/method.json" in refusal(capsys, "compare", str(good), "--out", "out"), ascii(name)
    (good / "method.json").write_text(json.dumps({"method": "x" * 80}))
    assert read_run(good).method == "x" * 80


def test_a_path_that_is_no_utf_8_is_written_out() -> None:
    assert cli.main(["compare", str(carv_run("a")), "--out", "b\udcff"]) == 0
    assert r"--out &#x27;b\udcff&#x27;" in Path("b\udcff/compare.html").read_text()


def test_a_table_of_endless_metrics_has_so_many_curves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("carv_3d.compare.tables.MOST_CURVES", 2)
    names = [f"m{i}" for i in range(5)]
    lines = [",".join(["step", "seconds", *names]), *(f"{i},{i},{2 * i - 3}e308,{i},{i},{i},{i}" for i in (1, 2))]
    (carv_run("many") / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert cli.main(["compare", "many", "--out", "out"]) == 0
    assert "of 6 metrics the first 2 have curves; the others are left out." in capsys.readouterr().out
    assert len(list(Path("out").glob("curves-*.png"))) == 2


def test_a_damaged_model_is_named_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    (carv_run("a") / "asset.glb").write_text("hello")
    assert "a/asset.glb does not begin as a file of its kind" in refusal(capsys, "compare", "a", "--out", "out")
    assert not Path("out").exists()


def test_a_folder_in_which_another_writes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    with locked(Path("out")):
        assert "another run is at work in out" in refusal(capsys, "compare", str(carv_run("a")), "--out", "out")
    assert cli.main(["compare", "a", "--out", "out"]) == 0
