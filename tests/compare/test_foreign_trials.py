"""Folders of runs that others made, or a machine damaged: figures where they can be read, else one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carv_3d.compare.reading import read_run
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml, load_config
from carv_3d.io.structured import value_at

ROWS = "step,train/loss\n0,1.0\n1,2.0\n"


def trial(folder: Path, rows: str = ROWS, config: str | bytes = "seed: 3\n") -> Path:
    """A threestudio trial."""
    for place, content in (("csv_logs/version_0/metrics.csv", rows), ("configs/parsed.yaml", config)):
        path = folder / place
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("system: [1]", "system is [1]; it must be a group of keys"),
        ("system: 3", "system is 3; it must be a group of keys"),
        ("system: {prompt_processor: 3}", "system.prompt_processor is 3; it must be a group of keys"),
        ("system: {prompt_processor: {prompt: [1]}}", "system.prompt_processor.prompt is [1]; it must be text"),
        ("system: {guidance_type: [1]}", "system.guidance_type is [1]; it must be text"),
        ("data: [1]", "data is [1]; it must be a group of keys"),
        ("data: {batch_size: 1e308}", "data.batch_size is 1e+308; it must be a whole number"),
        ("data: {batch_size: true}", "data.batch_size is True; it must be a whole number"),
        ("data: {batch_size: -1}", "data.batch_size is -1; it must be from 1 to 1048576"),
        ("data: {batch_size: " + "9" * 250 + "}", "it must be from 1 to 1048576"),
        ("seed: .nan", "seed is nan; it must be a whole number"),
        ("seed: [1]", "seed is [1]; it must be a whole number"),
        ("seed: 3\nseed: 4", "duplicate key seed"),
        ("seed: 3".encode("utf-16"), "is not text in UTF-8"),
        ("a: " + "[" * 10_000, "is not readable YAML"),
        ("[1]", "it holds a list"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_configuration_that_is_none_is_named_with_its_key(config: str | bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(CarvError) as caught:
        read_run(trial(tmp_path / "trial", config=config))
    assert why in str(caught.value)
    assert str(tmp_path / "trial/configs/parsed.yaml") in str(caught.value)


@pytest.mark.parametrize("config", ["", "system: null", "data: null", "system: {prompt_processor: null}"])
def test_a_configuration_may_leave_things_out(config: str, tmp_path: Path) -> None:
    run = read_run(trial(tmp_path / "trial", config=config))
    assert (run.prompt, run.seed) == ("", 0)


def test_a_batch_size_for_each_resolution_is_read_without_counts(tmp_path: Path) -> None:
    assert "renders" not in read_run(trial(tmp_path / "trial", config="data: {batch_size: [8, 4]}")).axes


@pytest.mark.parametrize("step", ["-5", "1e308", "inf", "nan"])
def test_steps_that_are_none_are_left_out(step: str, tmp_path: Path) -> None:
    run = read_run(trial(tmp_path / "trial", f"{ROWS}{step},9\n"))
    assert run.axes["steps"].tolist() == [1, 2]
    assert run.metrics["loss"].tolist() == [1, 2]
    assert any("1 damaged line(s)" in note for note in run.notes) == (step in ("-5", "1e308"))


@pytest.mark.parametrize("row", ["-1,1", "1e308,1", "nan,1", "3,-1e308"])
def test_rows_of_a_run_that_cannot_be_are_left_out_and_counted(row: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,seconds\n1,1\n{row}\n2,1\n")
    (tmp_path / "config.yaml").write_text(config_to_yaml(load_config()))
    run = read_run(tmp_path)
    assert run.axes["steps"].tolist() == [1, 2]
    assert "1 damaged line(s)" in run.notes[0]
    (tmp_path / "metrics.csv").write_text(f"step,seconds\n{row}\n")
    with pytest.raises(CarvError, match="no row with a step"):
        read_run(tmp_path)


@pytest.mark.parametrize("label", ['{"method": [1]}', '{"method": 3}'])
def test_a_label_is_text(label: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,seconds\n1,1\n")
    (tmp_path / "config.yaml").write_text(config_to_yaml(load_config()))
    (tmp_path / "method.json").write_text(label)
    with pytest.raises(CarvError, match=r"method\.json: method is .* it must be text"):
        read_run(tmp_path)
    (tmp_path / "method.json").write_text('{"method": null}')
    assert read_run(tmp_path).method == ""


@pytest.mark.parametrize("file", ["csv_logs/version_0/metrics.csv", "configs/parsed.yaml"])
def test_a_pipe_is_not_waited_for(file: str, tmp_path: Path) -> None:
    path = trial(tmp_path / "trial") / file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CarvError, match="is a pipe, and a file is due"):
        read_run(tmp_path / "trial")


@pytest.mark.parametrize("content", [None, b"", b"xx", b"\xff" * 100, (2**62).to_bytes(8, "little") + b"\0" * 50])
def test_event_files_that_are_none_hang_nothing(content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = trial(tmp_path / "trial") / "tb_logs/version_0/events.out.tfevents.1"
    path.parent.mkdir(parents=True)
    if content is None:
        os.mkfifo(path)
        with pytest.raises(CarvError, match="is a pipe, and a file is due"):
            read_run(tmp_path / "trial")
    else:
        path.write_bytes(content)
        assert read_run(tmp_path / "trial").axes["steps"].tolist() == [1, 2]


def test_a_value_is_of_its_kind_or_absent() -> None:
    values = {"a": {"b": 1, "c": None}}
    assert value_at(values, "a.b", int, "it") == 1
    assert value_at(values, "a.c", int, "it") is None
    assert value_at(values, "d.e.f", str, "it") is None
    with pytest.raises(CarvError, match=r"it: a\.b is 1; it must be text; restore it"):
        value_at(values, "a.b", str, "it")
