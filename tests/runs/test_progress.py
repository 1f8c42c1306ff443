"""What a run's progress shows."""

from __future__ import annotations

import re

import pytest

from carv_3d.runs import progress


def test_the_time_left_forgets_what_was_slow_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    eta, said = progress._Eta(100, 300), {}  # a resumed run
    for step in range(101, 201):
        now[0] += 4.0 if step <= 150 else 0.5
        said[step] = eta.left(step)
    assert said[110] == "12:40"  # 190 steps of 4 s
    assert said[150] == "10:00"
    assert said[175] == "1:02"  # 125 of half a second: the last 25 alone count
    assert said[200] == "0:50"


def test_a_run_of_many_days_says_so_once_at_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Display(write=said.append).progress(0, 10**6) as show:
        for step in range(1, 12):
            now[0] += 2.0
            show(step, {})
    notes = [line for line in said if line.startswith("Note")]
    assert notes == ["Note: at this pace 23.1 days are left; Ctrl-C stops the run, saved, and it can be resumed."]


def test_a_run_of_hours_says_nothing_of_days(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Display(write=said.append).progress(0, 40_000) as show:
        for step in range(1, 12):
            now[0] += 2.0
            show(step, {})
    assert said == []


NASTY, ESCAPED = "runs/\x1b[2J\r\x9b\n\udce9/a \u202emug", r"runs/\x1b[2J\r\x9b\n\udce9/a \u202emug"


def test_control_characters_of_a_path_or_a_prompt_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    said = list[str]()
    for display in (progress.Display(), progress.Display(write=said.append)):
        display.say(f"Done: open {NASTY}/é 杯.html")
        with display.status(f"reading {NASTY}"):
            pass
    lines = [f"Done: open {ESCAPED}/é 杯.html", f"reading {ESCAPED} ..."]
    assert capsys.readouterr().out.splitlines() == said == lines


@pytest.mark.parametrize("plain", [False, True])
def test_colors_are_left_out_where_the_user_asks(
    plain: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    with progress.Display().progress(0, 3) as show:
        show(2, {"seconds": 0.5})
    colors = re.findall(r"\x1b\[[0-9;]*\b(?:3[0-7]|38;5;\d+|9[0-7])m", capsys.readouterr().out)
    assert bool(colors) is not plain
