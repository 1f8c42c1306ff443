"""The folder of a run, and what may change when it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_3d.errors import CarvError
from carv_3d.runs.request import check_resumable, check_unchanged, is_changeable, new_folder, newest_folder


def test_a_new_run_has_an_unused_folder(tmp_path: Path) -> None:
    default = tmp_path / "a"
    assert new_folder(None, default) == default
    default.mkdir()
    (default / "config.yaml").touch()
    assert new_folder(None, default) == tmp_path / "a-2"
    assert new_folder(tmp_path / "b", default) == tmp_path / "b"
    with pytest.raises(CarvError, match="is not an empty folder; choose another --out, or resume the run in it"):
        new_folder(default, default)


def test_the_newest_folder_is_of_the_run_that_is_meant(tmp_path: Path) -> None:
    for name, text in (("a", "mine"), ("a-2", "other"), ("a-3", "damaged")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)

    def same_text(folder: Path) -> bool:
        text = (folder / "config.yaml").read_text()
        if text == "damaged":
            raise CarvError("it cannot be read")
        return text == "mine"

    assert newest_folder(tmp_path / "a", same_text) == tmp_path / "a"
    with pytest.raises(CarvError, match=r"there is no run to resume in .*a; begin one without --resume"):
        newest_folder(tmp_path / "a", lambda folder: False)
    check_resumable(tmp_path / "a")
    with pytest.raises(CarvError, match="there is no run to resume in"):
        check_resumable(tmp_path)


def test_what_may_change_is_named_whole_or_by_its_group() -> None:
    names = ("device", "trainer.", "data.eval_")
    changeable = [
        k for k in ("device", "devices", "trainer.x", "trainer", "data.eval_width") if is_changeable(k, names)
    ]
    assert changeable == ["device", "trainer.x", "data.eval_width"]
    stored = {"device": "cpu", "trainer": {"steps": 3}, "data": {"width": 8}}
    check_unchanged(Path("run"), stored, {"device": "cuda", "trainer": {"steps": 4}, "data": {"width": 8}}, names)
    with pytest.raises(CarvError, match=r"the run in run has data.width = 8, and --resume cannot change it to 9"):
        check_unchanged(Path("run"), stored, {**stored, "data": {"width": 9}}, names)
