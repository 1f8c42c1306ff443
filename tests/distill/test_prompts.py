"""Prompts: listed and of carv-tiny, and those of a run's previews."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import small

from carv_3d.distill.command import DistillRun
from carv_3d.distill.prompts import ListedPrompts, TinyCaptions, read_prompts
from carv_3d.distill.request import Settings
from carv_3d.runs.progress import Display
from carv_3d.runs.run import Pace


def test_a_list_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red mug\n\n  a blue tree \n")
    assert ListedPrompts.read(tmp_path / "prompts.txt").prompts == ["a red mug", "a blue tree"]


def test_a_byte_order_mark_is_skipped_and_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red\u2028mug\r\na blue\x0ctree\n", encoding="utf-8-sig", newline="")
    assert ListedPrompts.read(tmp_path / "prompts.txt").prompts == ["a red\u2028mug", "a blue\x0ctree"]


def test_a_run_has_the_pace_and_the_prompts_of_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.distill.command.PromptClassifier.for_prompts", lambda *_: [])
    distillation = small(steps=50, preview_every=7, save_every=11.0, preview_prompts=3)
    run = DistillRun(distillation, Settings("carv-tiny", distillation.options), tmp_path, Display(quiet=True))
    assert run.pace == Pace(50, save_seconds=11.0, preview_steps=7)
    assert run.captions == ["0", "1", "0"]


def test_prompts_of_a_list_and_of_carv_tiny() -> None:
    listed = ListedPrompts(["a", "b", "c"])
    drawn = listed.draw(3000, torch.Generator().manual_seed(0))
    assert all(abs(drawn.count(x) - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for x in "abc")
    assert listed.first(5, torch.Generator()) == ["a", "b", "c", "a", "b"]
    tiny = read_prompts(None, "carv-tiny")
    assert isinstance(tiny, TinyCaptions)
    from carv_3d.tiny.vocabulary import COLORS, OBJECTS, held_out_combinations, parse

    generator = torch.Generator().manual_seed(0)
    captions = tiny.draw(400, generator)
    assert captions == tiny.draw(400, torch.Generator().manual_seed(0))
    pairs = {parse(c)[:2] for c in captions}
    assert not pairs & held_out_combinations()
    assert len({p[0] for p in pairs}) == len(OBJECTS)
    assert len({p[1] for p in pairs}) == len(COLORS)
    assert tiny.draw(400, generator) != captions
