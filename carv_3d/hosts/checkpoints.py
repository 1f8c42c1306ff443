"""Checkpoints of threestudio on torch 2.6 and newer, which loads no classes but those that are allowed by name.

A checkpoint holds tensors and plain values, and one thing more: lists of the configuration, such as the `betas` of
Adam's parameter groups, with the whole configuration behind them. `allow_host_types` allows the types of these lists,
and `without_containers` leaves them out of checkpoints to come. Nothing else is allowed: a file that names another
class is refused by torch, as before.
"""

from __future__ import annotations

import builtins
import collections
import typing
from collections.abc import Iterable
from typing import Any

from carv_3d.errors import CarvError, shown

PLAIN = ("int", "float", "bool", "str", "list", "dict", "tuple")
NODES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode")


class HostClass:
    """Stands in a loaded checkpoint for a class that the configuration remembers; it does nothing."""


def nested_config(owner: Any, name: str) -> type:
    """In place of `getattr`, by which pickle writes `System.Config`; anything else is refused."""
    if owner is not HostClass or name != "Config":
        raise CarvError(
            f"the checkpoint asks for {shown(name)} of {shown(owner)}, as threestudio's never do; take another file"
        )
    return HostClass


def allow_host_types(classes: Iterable[type]) -> None:
    """Let `torch.load` read what threestudio and Lightning write; does nothing before torch 2.6.

    Args:
        classes: threestudio's own, whose `Config` may be named. They are not loaded: HostClass stands for each.
    """
    import torch
    from omegaconf import DictConfig, ListConfig, base, nodes

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return
    containers = [DictConfig, ListConfig, base.Metadata, base.ContainerMetadata]
    types = [*containers, *(getattr(nodes, name) for name in NODES if hasattr(nodes, name)), collections.defaultdict]
    named: list[Any] = [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in types]
    named += [(getattr(builtins, name), f"builtins.{name}") for name in PLAIN]
    named += [(getattr(typing, name), f"typing.{name}") for name in ("Any", "List", "Dict")]
    named += [(nested_config, "builtins.getattr")]
    named += [(HostClass, f"{kind.__module__}.{kind.__qualname__}") for kind in classes]
    torch.serialization.add_safe_globals(named)


def without_containers(value: Any) -> Any:
    """Nested dicts, lists and tuples with OmegaConf's containers in them as plain ones; what is plain is the same."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True)
    if type(value) is dict:
        return {key: without_containers(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_containers(inner) for inner in value)
    return value
