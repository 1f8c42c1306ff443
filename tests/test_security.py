"""What docs/SECURITY.md claims: no code from files, no connections, pages that load nothing."""

from __future__ import annotations

import ast
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import rising
from tiny_host import TINY

from carv_3d.attribution.data_report import DataReport
from carv_3d.attribution.page import render_page
from carv_3d.attribution.queries import Query
from carv_3d.attribution.scores import Scores
from carv_3d.cli import main as cli
from carv_3d.compare.write import write_comparison
from carv_3d.report.page import write_report

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "carv_3d").rglob("*.py"), *(ROOT / "custom").rglob("*.py")])
LOADING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "ping", "xlink:href"}
UNSAFE_IMPORTS = {"pickle", "dill", "shelve", "marshal", "joblib", "subprocess", "http", "urllib", "requests", "ftplib"}
# starts the launcher of the checkout that its user named, with an argument for each word and no shell
ALLOWED = {"carv_3d/hosts/launch.py": {"subprocess"}}


class Loads(HTMLParser):
    """Whatever a page would load, and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: list[str] = []
        self.policies: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.add(tag)
        self.places += [value or "" for name, value in attrs if name in LOADING]
        self.places += re.findall(r"url\(([^)]*)\)", named.get("style") or "")
        if (named.get("http-equiv") or "").lower() == "content-security-policy":
            self.policies.append(named.get("content") or "")


def foreign(text: str) -> list[str]:
    page = Loads(text)
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert len(page.policies) == 1
    assert "default-src 'none'" in page.policies[0]
    assert not re.search(r"https?:|\*", page.policies[0])
    return [place[:80] for place in page.places if not place.startswith(("data:", "blob:", "#"))]


def test_a_place_that_a_page_would_load_is_seen() -> None:
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
    for place in ("<img src=//a/b>", "<a href=http://a>", "<video poster=x>", "<b style='background: url(http://a)'>"):
        assert foreign(policy + place)
    assert foreign(f"{policy}<img src='data:x'>") == []


class OneImage:
    """A training image."""

    name = "x"
    report = DataReport([("<img src=http://a>", "<img src=http://a>")], [("<img src=http://a>", "")])

    def __len__(self) -> int:
        return 1

    def key(self, index: int) -> str:
        return "http://a/b.png"

    caption = key

    def image(self, index: int) -> Any:
        return np.zeros((4, 4, 3), np.uint8)

    def labels(self, index: int) -> dict[str, str]:
        return {}

    def fingerprint(self) -> str:
        return ""


def test_no_page_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carv_3d.compare.write.write_plots", lambda *_: None)  # its images lie next to the page
    (tmp_path / "asset.glb").write_bytes(b"glTF")
    (tmp_path / "metrics.csv").write_text("step,seconds,snr_step\n1,0.5,2\n2,0.5,3\n")
    write_report(tmp_path, {"system": {"prompt_processor": {"prompt": "<img src=http://a>"}}, "seed": 0}, {})
    runs = [rising(method, speed, "<img src=http://a>") for method, speed in (("a", 1.0), ("b", 2.0))]
    write_comparison(tmp_path, runs)
    query = Query("<img src=http://a>", "a", [np.zeros((4, 4, 3), np.uint8)], ["a"], "")
    scores = Scores(torch.tensor([[1.0]]), torch.tensor([[0.1]]))
    attribution = render_page(query, OneImage(), scores, "relatif", {}, (8, 8))
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "compare.html")]
    for text in (*pages, attribution):
        assert foreign(text) == []


def test_no_module_runs_code_from_a_file() -> None:
    unsafe = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                unsafe_names = UNSAFE_IMPORTS - ALLOWED.get(str(path.relative_to(ROOT)), set())
                unsafe += [f"{place}: {n}" for n in names if n.partition(".")[0] in unsafe_names]
            if isinstance(node, ast.Call):
                called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                named = called in (
                    "eval",
                    "exec",
                    "compile",
                    "__import__",
                    "os.system",
                    "yaml.load",
                    "yaml.unsafe_load",
                )
                pickled = called == "torch.load" and given.get("weights_only") != "True"
                allowed = {given.get(k) for k in ("allow_pickle", "trust_remote_code", "shell")} - {None, "False"}
                unsafe += [f"{place}: {called}"] if named or pickled or allowed else []
    assert unsafe == []


def test_local_work_makes_no_connection(sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **more: Any) -> None:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a red mug\n")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    model = f"system.guidance.pretrained_model_name_or_path={sd_folder}"
    assert cli.main(["generate", "a red mug", "--dry-run", *TINY, model]) == 0
    assert cli.main(["distill", str(sd_folder), "--dry-run", "batch_size=1", "num_draws=1", "prompts=p.txt"]) == 0


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) >= 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
