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


LONG = "a mug of red tea on a table"


@pytest.mark.parametrize("front", [False, True])
def test_a_prompt_that_leaves_no_room_is_cut_so_that_views_differ(
    front: bool, host: Any, sd_folder: Path, sd_teacher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def processor(prompt: str) -> Any:
        given = {"pretrained_model_name_or_path": str(sd_folder), "prompt": prompt}
        kind = host.modules["carv-stable-diffusion-prompt-processor"]
        return kind({**given, "view_dependent_prompt_front": front})

    made = processor(LONG)  # the model reads 20 tokens, one a character
    assert LONG.startswith(made.prompt)
    assert f"'{LONG}' is cut to '{made.prompt}', so that the words of each view fit in 20 tokens" in caplog.text
    assert all(len(sd_teacher.tokenizer(view)["input_ids"]) <= 20 for view in made.prompts_vd)
    assert len({tuple(row.flatten().tolist()) for row in sd_teacher.text_embeddings(made.prompts_vd)}) == 4
    caplog.clear()
    assert processor("a").prompt == "a"
    assert not caplog.text


def test_the_texts_of_views_differ_for_xl(host: Any, xl_folder: Path, tmp_path: Path) -> None:
    given = {"pretrained_model_name_or_path": str(xl_folder), "prompt": LONG, "cache_dir": str(tmp_path)}
    assert views_differ(host.modules["carv-stable-diffusion-xl-prompt-processor"](given))


def views_differ(processor: Any) -> bool:
    """Whether the four views have texts of their own."""
    texts = [processor.load_from_cache(view) for view in processor.prompts_vd]
    return len({tuple(text.flatten().tolist()) for text in texts}) == 4


def test_an_old_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    with pytest.raises(ImportError, match=r"needs torch 2\.0 or newer, .* has 1\.13\.1"):
        double.install(monkeypatch)


def test_without_the_package_the_import_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "carv_3d", None)
    with pytest.raises(ImportError, match=re.escape("install.sh --threestudio")):
        double.install(monkeypatch)
