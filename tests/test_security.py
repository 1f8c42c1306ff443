"""What docs/SECURITY.md claims: no code from files, no connections, pages that load nothing."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM
from tiny_host import TINY
from written_pages import written_pages

from carv_3d.cli import main as cli

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "carv_3d").rglob("*.py"), *(ROOT / "custom").rglob("*.py")])
LOADING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "ping", "xlink:href"}
UNSAFE_IMPORTS = {"pickle", "dill", "shelve", "marshal", "joblib", "subprocess", "http", "urllib", "requests", "ftplib"}
PLAIN = {"urllib.parse"}  # which connects to nothing
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


def test_no_page_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in written_pages(tmp_path, monkeypatch, "<img src=http://a>"):
        assert foreign(text) == []


class Proxy(ThreadingHTTPServer):
    """A proxy that notes who is asked for, and gives nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Noting)
        self.hosts: set[str] = set()


class Noting(BaseHTTPRequestHandler):
    """Of a `Proxy`."""

    def do_GET(self) -> None:
        host = urlsplit(self.path if "://" in self.path else f"//{self.path}").hostname or ""
        # what the browser asks for itself
        if not re.search(r"(^|\.)(google|googleapis|gvt1)\.com$", host):
            self.server.hosts.add(host)  # type: ignore[attr-defined]
        self.send_error(404)

    do_CONNECT = do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_chromium_no_page_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = "<img src=http://page.test/a><script src=https://script.test/b></script>"
    pages = written_pages(tmp_path, monkeypatch, loading)
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()

        def asked_by(text: str) -> set[str]:
            proxy.hosts.clear()
            (tmp_path / "page.html").write_text(text, encoding="utf-8")
            words = (
                "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=2000",
                "--disable-background-networking", f"--proxy-server=http://127.0.0.1:{proxy.server_port}",
                "--proxy-bypass-list=<-loopback>", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            )  # fmt: skip
            command = [str(CHROMIUM), *words, (tmp_path / "page.html").as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
            assert "</html>" in done.stdout
            return set(proxy.hosts)

        assert asked_by(f"<!doctype html><html><body>{loading}</body></html>") == {"page.test", "script.test"}
        assert set().union(*map(asked_by, pages)) == set()
        proxy.shutdown()


def test_no_module_runs_code_from_a_file() -> None:
    unsafe = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                unsafe_names = UNSAFE_IMPORTS - ALLOWED.get(str(path.relative_to(ROOT)), set())
                unsafe += [f"{place}: {n}" for n in names if n.partition(".")[0] in unsafe_names and n not in PLAIN]
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
