"""The extension's import and its prompt processor in a host double."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch

from carv_3d.tiny.tokens import LENGTH


def test_the_prompt_processor_reads_a_folder(host: Any, sd_folder: Path) -> None:
    processor = host.modules["carv-stable-diffusion-prompt-processor"](
        {"pretrained_model_name_or_path": str(sd_folder)}
    )
    assert processor.read_from == str(sd_folder)
    assert processor.cfg.use_cache
    assert processor.cfg.spawn


def test_the_built_in_model_is_read_from_the_package_and_never_from_a_cache(host: Any, tmp_path: Path) -> None:
    processor = host.modules["carv-stable-diffusion-prompt-processor"]({"pretrained_model_name_or_path": "carv-tiny"})
    assert (Path(processor.read_from) / "model_index.json").is_file()
    assert not processor.cfg.use_cache
    assert not processor.cfg.spawn
    processor.spawn_func(processor.read_from, ["a red mug", ""], str(tmp_path))
    names = [tmp_path / f"{double.hash_prompt(processor.read_from, prompt)}.pt" for prompt in ("a red mug", "")]
    saved, empty = map(torch.load, names)
    assert saved.shape == (LENGTH, 128)
    assert not torch.equal(saved, empty)


def test_an_old_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    with pytest.raises(ImportError, match=r"needs torch 2\.0 or newer, .* has 1\.13\.1"):
        double.install(monkeypatch)


def test_without_the_package_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "carv_3d", None)
    with pytest.raises(ImportError, match=re.escape("install.sh --threestudio")):
        double.install(monkeypatch)
