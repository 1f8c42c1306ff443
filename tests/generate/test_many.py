"""`carv generate --prompts FILE`: a run of each prompt, what the same command does again, the gallery, Ray."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from fake_ray import FakeRay
from tiny_host import TINY

from carv_3d.cli import main as cli
from carv_3d.config.request import GenerateRequest
from carv_3d.errors import CarvError
from carv_3d.generate import many
from carv_3d.generate.config import config_to_yaml, load_config, settled
from carv_3d.generate.many import run_name
from carv_3d.io.tables import read_metrics
from carv_3d.runs.listing import find_runs

PROMPTS = ["a red mug", 'a <b>"blue"</b> chair', "a red mug"]


@pytest.fixture
def words(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of tiny runs of the prompts in a file."""
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    options = [*TINY, f"system.guidance.pretrained_model_name_or_path={sd_folder}"]
    return ["generate", "--prompts", "list.txt", "--out", "out", *options]


def folders() -> dict[str, Path]:
    return {run.subject: run.folder for run in find_runs(Path("out"))}


def test_each_prompt_has_a_run_and_the_same_command_does_what_is_left(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    assert "2 prompts, 0 of them done -> out" in capsys.readouterr().out
    made = folders()
    assert set(made) == set(PROMPTS)
    times = {p: p.stat().st_mtime_ns for folder in made.values() for p in folder.iterdir()}
    page = Path("out/gallery.html").read_text(encoding="utf-8")
    assert page.count('<img class="views" src="data:image/jpeg;base64,') == 2
    assert all(f'href="{folder.name}/report.html"' in page for folder in made.values())
    assert "<b>&quot;" not in page.replace("&lt;b&gt;&quot;", "")
    HTMLParser().feed(page)

    with Path("list.txt").open("a", encoding="utf-8") as file:
        file.write("a green tree")
    (made["a red mug"] / "report.html").unlink()  # as of a run that was killed while it was exported
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "3 prompts, 1 of them done -> out" in said
    assert "Resumed after step" in said
    assert set(folders()) == {*PROMPTS, "a green tree"}
    other = made[PROMPTS[1]]
    assert all(p.stat().st_mtime_ns == times[p] for p in other.iterdir())
    assert (made["a red mug"] / "report.html").exists()


def test_more_steps_extend_runs_that_are_done(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    capsys.readouterr()
    assert cli.main([*words, "trainer.max_steps=5"]) == 0
    assert "2 prompts, 0 of them done" in capsys.readouterr().out
    assert {read_metrics(folder / "metrics.csv")[-1]["step"] for folder in folders().values()} == {5}
    assert cli.main([*words, "trainer.max_steps=5"]) == 0
    assert "2 prompts, 2 of them done" in capsys.readouterr().out
    assert cli.main([*words, "lr=0.5"]) == 2
    assert "--resume cannot change it" in capsys.readouterr().err


def test_a_run_that_fails_is_named_and_the_others_are_made(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = many.make_run

    def failing(planned: Any, *rest: Any) -> int:
        if planned.config.prompt == "a red mug":
            raise CarvError("no surface")
        return make(planned, *rest)

    monkeypatch.setattr(many, "make_run", failing)
    assert cli.main(words) == 2
    assert "1 of 2 prompts failed, the first is 'a red mug': no surface" in capsys.readouterr().err
    assert set(folders()) == {PROMPTS[1]}
    assert "no surface" in Path("out/gallery.html").read_text(encoding="utf-8")


def test_a_signal_stops_all_and_says_so(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "make_run", lambda *_: 143)
    assert cli.main(words) == 143
    assert "Stopped. The same command continues." in capsys.readouterr().out


def test_on_ray_each_prompt_is_a_task(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ray, begun = FakeRay(4), []

    def begin(function: Any, *given: Any) -> str:
        begun.append(given[2])
        ray.result = function(*given)
        return given[2]

    ray.begin = begin  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert cli.main([*words, "--engine", "ray"]) == 0
    assert begun == PROMPTS[:2]
    assert {run.state for run in find_runs(Path("out"))} == {"done"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["a red mug"], "a prompt and --prompts are both given"),
        (["--dry-run"], "--dry-run shows one run"),
        (["--resume"], "--prompts continues what is in its folder by itself"),
        (["--workers", "2"], "--workers is for --engine ray without an --address"),
        (["--prompts", "other.txt"], "--prompts is given 2 times; give it once"),
        (["num_drawz=2"], "list.txt, 'a red mug': "),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    more: list[str], sentence: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(capsys, *words, *more)


def test_a_list_that_is_not_there_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.txt" in refusal(capsys, *(word.replace("list.txt", "none.txt") for word in words))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("\n \n", "list.txt holds no prompts"), ("\n".join(map(str, range(1001))), "1,001 prompts; one command makes")],
)
def test_a_list_of_none_or_too_many_is_refused(
    text: str, sentence: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text(text, encoding="utf-8")
    assert sentence in refusal(capsys, *words)


def test_engine_flags_need_a_list(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "are for many prompts" in refusal(capsys, "generate", "a red mug", "--engine", "ray")


def planned(text: str, **more: Any) -> list[tuple[str, Path, bool]]:
    Path("list.txt").write_text(text, encoding="utf-8")
    model = "system.guidance.pretrained_model_name_or_path=some/model"
    request = GenerateRequest(overrides=(*TINY, model, *more.pop("overrides", ())), **more)
    plans = many.plan(request, Path("list.txt"), Path("out"))
    return [(p.config.prompt, p.folder, p.done) for p in plans]


def begun(folder: Path, prompt: str) -> Path:
    """A run that is done, as far as a plan looks at it."""
    folder.mkdir(parents=True)
    words = [*TINY, "system.guidance.pretrained_model_name_or_path=some/model"]
    text = config_to_yaml(settled(load_config(None, words, prompt), "voxel"))
    (folder / "config.yaml").write_text(text.replace("caf\u00e9", "cafe\u0301"))  # as the last version wrote it
    (folder / "metrics.csv").write_text("step,loss\n4,1\n")
    (folder / "report.html").touch()
    return folder


def test_runs_of_another_seed_are_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = begun(Path("out") / run_name("a mug", 0), "a mug")
    assert planned("a mug") == [("a mug", folder, True)]
    other = Path("out") / run_name("a mug", 9)
    assert planned("a mug", overrides=("seed=9",)) == planned("a mug", seed=9) == [("a mug", other, False)]


def test_a_prompt_in_both_forms_of_unicode_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert planned(f"{apart}\n{composed}\n") == [(composed, Path("out") / run_name(composed, 0), False)]
    folder = begun(Path("out") / run_name(apart, None), apart)
    assert planned(composed) == [(composed, folder, True)]


def test_a_prompt_never_becomes_a_path_and_alike_ones_have_folders_of_their_own() -> None:
    names = [run_name(prompt, seed) for prompt in ("../x", "..\\x", "x", "x" * 4000, "\ud800") for seed in (None, 3)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,60}", name) for name in names)
