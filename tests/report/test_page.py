"""The report's page: offline, escaped, and readable whatever is missing."""

from __future__ import annotations

import math
import os
import re
import shlex
from html import escape, unescape
from pathlib import Path

import pytest

from carv_3d.config.reader import to_mapping
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.io.tables import read_metrics
from carv_3d.report.charts import Series
from carv_3d.report.page import CURVES, data_uri, flatten, page, render_report, write_report

NASTY = """<script>alert("x")</script>'"><img src=x onerror=alert(1)></script>&amp; ${a} {b}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "asset.glb").write_bytes(b"glTF-model")
    (tmp_path / "turntable.mp4").write_bytes(b"\0\0\0\x18ftyp")
    (tmp_path / "turntable.gif").write_bytes(b"GIF89a")
    (tmp_path / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "metrics.csv").write_text(
        "step,seconds,snr_step,ess,classifier_object\n1,0.5,0.25,3.9,\n2,0.4,0.5,3.8,0.7\n3,0.4,nan,3.9,\n4,0.4"
    )
    return tmp_path


def small_report(folder: Path, prompt: str = "a red mug") -> str:
    return render_report(folder, to_mapping(load_config(prompt=prompt)), {"steps": "3", "<b>": "<i>"})


def without_viewer(text: str) -> str:
    return re.sub(r'<script type="module">.*?</script>', "", text, flags=re.DOTALL)


def test_it_shows_model_film_views_curves_and_settings(folder: Path) -> None:
    text = small_report(folder)
    assert "data:model/gltf-binary;base64,Z2xURi1tb2RlbA==" in text
    assert "data:video/mp4;base64,AAAAGGZ0eXA=" in text
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert without_viewer(text).count("<svg") == 3  # the classifier's score, SNR and the effective sample size
    assert "<td>system.guidance.num_draws</td><td>2</td>" in text
    assert "customElements" in text  # the viewer's own code


def test_it_loads_nothing_from_anywhere(folder: Path) -> None:
    text = without_viewer(small_report(folder))
    assert re.findall(r'(?:src|href|url|poster)\s*[=(]\s*["\']?(?!data:)[^"\'\s>]+', text) == []
    assert re.findall(r"https?://", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]
    assert "*" not in policy[1]


def test_whatever_a_user_wrote_is_text(folder: Path) -> None:
    text = without_viewer(small_report(folder, NASTY))
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "<i>" not in text  # facts too
    assert unescape(re.search(r"<h1>(.*?)</h1>", text)[1]) == NASTY  # type: ignore[index]
    command = unescape(re.search(r"<pre>(.*?)</pre>", text, re.DOTALL)[1])  # type: ignore[index]
    assert shlex.split(command) == ["carv", "generate", NASTY, "--config", "config.yaml"]


def everywhere(value: object) -> object:
    """The value with NASTY, on two lines, for every text in it, and for every name."""
    if isinstance(value, dict):
        kept = ("system", "prompt_processor", "prompt")  # which the page looks up
        return {key if key in kept else f"{key}{NASTY}": everywhere(v) for key, v in value.items()}
    return f"{value}\n{NASTY}" if isinstance(value, str) else value


def test_markup_in_any_option_or_in_a_model_folders_name_is_text(folder: Path) -> None:
    config = everywhere(to_mapping(load_config(prompt="a red mug")))
    assert isinstance(config, dict)
    text = without_viewer(render_report(folder, config, {"teacher": f"a\n{NASTY}", NASTY: "1"}))
    assert text.count("onerror") > 50  # it is there, as text
    for markup in ("<script", "<img src=x", "'\">"):
        assert markup not in text


def test_the_inlined_viewer_cannot_end_its_script_early(folder: Path) -> None:
    scripts = re.findall(r'<script type="module">(.*?)</script>', small_report(folder), re.DOTALL)
    assert len(scripts) == 1
    assert len(scripts[0]) > 500_000
    assert "sourceMappingURL" not in scripts[0]


def test_missing_files_leave_a_note_in_their_place(tmp_path: Path) -> None:
    text = small_report(tmp_path)
    assert "No mesh was made" in text
    assert "No turntable was made" in text
    assert "No step has been recorded" in text
    assert "model-viewer>" not in without_viewer(text).split("<footer>")[0].split("</style>")[1]


def test_without_a_film_the_gif_stands_in(folder: Path) -> None:
    (folder / "turntable.mp4").unlink()
    assert '<img src="data:image/gif;base64,R0lGODlh"' in small_report(folder)


def test_it_is_written_into_the_folder(folder: Path) -> None:
    path = write_report(folder, to_mapping(load_config(prompt="ein Häuschen")), {})
    assert path == folder / "report.html"
    assert "ein Häuschen" in path.read_text(encoding="utf-8")


def test_metrics_are_read_with_gaps_and_without_a_torn_line(folder: Path) -> None:
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == [1.0, 2.0, 3.0]
    assert math.isnan(rows[0]["classifier_object"])
    assert rows[1]["classifier_object"] == 0.7
    assert [r["step"] for r in read_metrics(folder / "metrics.csv", last_step=2)] == [1.0, 2.0]
    assert read_metrics(folder / "nothing.csv") == []


def test_flatten_known_value() -> None:
    flat = flatten({"a": {"b": 1, "c": None}, "d": [1, 2], "e": 0, "f": False})
    assert flat == [("a.b", "1"), ("a.c", "—"), ("d", "[1, 2]"), ("e", "0"), ("f", "False")]


def test_every_column_has_its_curve_once_and_titles_are_said(folder: Path) -> None:
    columns = [name for names, *_ in CURVES for name in names]
    assert len(set(columns)) == len(columns)
    rows = "".join(f"{step},{','.join('0.5' for _ in columns)}\n" for step in (1, 2))
    (folder / "metrics.csv").write_text(f"step,{','.join(columns)}\n{rows}")
    text = without_viewer(small_report(folder))
    assert text.count("<svg") == len(CURVES)
    for names, title, label, explanation in CURVES:
        assert f"<h3>{escape(title)}</h3>" in text
        assert escape(explanation) in text
        assert f'aria-label="{escape(label)} over step"' in text
        for name in names if len(names) > 1 else ():
            assert f">{name.split('_', 1)[1]}</text>" in text  # the legend


def test_long_runs_have_running_means_and_seconds_are_robust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int, bool]] = []
    steps: list[list[float]] = []

    def recorded(series: list[Series], x: str, y: str, window: int, robust: bool) -> str:
        steps.append([*series[0].x])
        drawn.append((len(series), window, robust))
        return "<svg/>"

    monkeypatch.setattr("carv_3d.report.page.line_chart", recorded)
    lines = "".join(f"{2 * step},{step},{step if step < 50 else ''}\n" for step in range(100))
    (folder / "metrics.csv").write_text(f"step,ess,seconds_render\n{lines}")
    small_report(folder)
    assert drawn[2] == (1, 5, False)  # the effective sample size: 100 points, means of a twentieth
    assert steps[2] == [2.0 * step for step in range(100)]
    assert drawn[3] == (4, 1, True)  # seconds: 50 points are drawn as they are


def test_a_page_has_the_viewer_and_style_only_where_they_are_asked_for() -> None:
    bare = page("a & b", "<p>x</p>", viewer=False)
    assert "<title>a &amp; b · carv_3d</title>" in bare
    assert "<script" not in bare
    assert "model-viewer" not in bare.split("<body>")[1]
    assert "script-src" not in bare
    assert "<p>x</p>" in bare
    full = page("t", "", viewer=True, style=".mine{color:red}")
    assert ".mine{color:red}</style>" in full
    assert "&lt;model-viewer&gt; 4.4.0" in full
    assert full.count("<script") == 1
    assert "; script-src 'unsafe-inline'" in full


def test_data_uris(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x00\xff")
    assert data_uri(tmp_path / "a.bin", "x/y") == "data:x/y;base64,AP8="
    assert data_uri(tmp_path / "none", "x/y") == ""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CarvError, match="pipe is a pipe, and a file is due; restore it"):
        data_uri(tmp_path / "pipe", "x/y")


@pytest.mark.parametrize("name", ["asset.glb", "turntable.mp4", "preview.png"])
def test_a_file_of_another_kind_is_one_sentence(folder: Path, name: str) -> None:
    for content in (b"", b"hello, this is text"):
        (folder / name).write_bytes(content)
        with pytest.raises(CarvError, match=rf"{name} does not begin as a file of its kind \(.*; restore it"):
            small_report(folder)
