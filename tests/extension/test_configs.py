"""The shipped configurations and the extension's pages: nothing named that is not there, nothing there that is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import recorded_parity as recorded
from omegaconf import OmegaConf

from carv_3d.guidance.sds import GuidanceOptions

README = (double.EXTENSION / "README.md").read_text()
DETAILS = (double.EXTENSION.parents[1] / "docs" / "THREESTUDIO.md").read_text()
CONFIGS = sorted((double.EXTENSION / "configs").glob("*.yaml"))


def test_all_configurations_are_there() -> None:
    assert [file.stem for file in CONFIGS] == [
        "carv-dreamfusion-if", "carv-dreamfusion-sd", "carv-dreamfusion-sdxl", "carv-dreamfusion-tiny",
        "carv-gaussian-splatting", "carv-hifa", "carv-instructnerf2nerf", "carv-latentnerf", "carv-magic3d-coarse-sd",
        "carv-magic3d-refine-sd", "carv-mvdream", "carv-perpneg-sd", "carv-prolificdreamer-vsd", "carv-sdi",
        "carv-sjc", "carv-stable-zero123", "carv-zero123",
    ]  # fmt: skip


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_configuration_says_what_the_guidance_takes(file: Path, host: Any) -> None:
    cfg = OmegaConf.load(file)
    kind = host.modules[cfg.system.guidance_type]
    common = sys.modules["threestudio-carv.common"]
    common.check_names(kind.Config, cfg.system.guidance)
    cfg.system.prompt_processor.prompt = "a red mug"  # the one value that a user gives
    for name, resolve in (("not", lambda x: not x), ("gt0", lambda x: x > 0)):  # as threestudio has them
        OmegaConf.register_new_resolver(name, resolve, replace=True)
    options = common.read_options(GuidanceOptions, cfg.system.guidance)
    assert options.num_draws == ("auto" if file.stem == "carv-gaussian-splatting" else 4)
    assert cfg.name == file.stem
    assert cfg.system_type.endswith("-system:carv-checkpoint")
    if cfg.system.prompt_processor_type == "dummy-prompt-processor":  # threestudio's, for models without text
        assert cfg.system.guidance.cond_image_path == cfg.data.image_path
    else:
        assert cfg.system.prompt_processor_type in host.modules
        sections = (cfg.system.guidance, cfg.system.prompt_processor)
        if "ip2p_name_or_path" in cfg.system.guidance:
            sections = sections[1:]  # its text encoder is Stable Diffusion's
        sections = [section for section in sections if "model_name" not in section]  # MVDream's, which is the same
        assert len({section.pretrained_model_name_or_path for section in sections}) == 1  # both read the same model
    assert f"`{file.stem}`" in README


def test_every_option_of_ours_is_documented_with_its_default(host: Any) -> None:
    config = host.modules["carv-stable-diffusion-guidance"].Config()
    stock = recorded.facts()["stable-diffusion-guidance"]
    added = {name: value for name, value in vars(config).items() if name not in stock}
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", DETAILS, re.MULTILINE))
    documented = {name: OmegaConf.create(f"x: {value.strip('`')}").x for name, value in rows.items()}
    assert documented == added


def test_every_guidance_is_in_both_pages(host: Any) -> None:
    for name in host.modules:
        if name.endswith("-guidance"):
            assert f"`{name}`" in README
            assert name in DETAILS


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_commands_in_the_readme_name_files_that_exist() -> None:
    named = re.findall(r"custom/threestudio-carv/(configs/\S+\.yaml)", README)
    assert named
    for name in named:
        assert (double.EXTENSION / name).is_file()
