"""The table of counterparts, the extension's types, and what threestudio's configurations ask of them.

`tests/hosts/threestudio_configs.json` has the guidance types of each configuration of threestudio, and the names of the
options that it gives to each: `benchmarks/threestudio_configs.py CHECKOUT --facts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from carv_3d.hosts.counterparts import COUNTERPARTS, NEW, PROMPT_PROCESSORS

FACTS = json.loads((Path(__file__).parents[1] / "hosts" / "threestudio_configs.json").read_text())
NOT_THREESTUDIOS = {"controlnet-guidance"}
"""Named by a configuration for debugging, and registered nowhere in threestudio."""


def uses() -> Iterator[tuple[str, str, list[str]]]:
    """(configuration, stock type, names of its options)."""
    for name, groups in FACTS.items():
        for guidance in groups.values():
            yield name, guidance["type"], guidance["options"]


def test_the_facts_are_of_every_configuration() -> None:
    assert len(FACTS) == 55
    assert sum(len(groups) for groups in FACTS.values()) == 59  # Magic123's four have two guidances


@pytest.mark.parametrize("stock", COUNTERPARTS)
def test_a_counterpart_is_registered_with_the_defaults_of_the_table(stock: str, host: Any) -> None:
    counterpart = COUNTERPARTS[stock]
    config = host.modules[counterpart.name].Config()
    assert config.num_draws == counterpart.num_draws
    assert {name: getattr(config, name) for name in counterpart.models} == counterpart.models


def test_every_guidance_of_the_extension_is_a_counterpart_or_new(host: Any) -> None:
    registered = {name for name in host.modules if name.endswith("-guidance")}
    assert registered == {counterpart.name for counterpart in COUNTERPARTS.values()} | set(NEW)
    assert set(PROMPT_PROCESSORS.values()) <= set(host.modules)


@pytest.mark.parametrize(("config", "stock", "options"), uses(), ids=[f"{name}: {kind}" for name, kind, _ in uses()])
def test_every_option_of_every_configuration_is_taken(config: str, stock: str, options: list[str], host: Any) -> None:
    if stock in NOT_THREESTUDIOS:
        assert config.startswith("debugging/")
        return
    taken = {field.name for field in fields(host.modules[COUNTERPARTS[stock].name].Config)}
    assert set(options) <= taken
