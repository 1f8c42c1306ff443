"""Options: frozen dataclasses whose fields say what they may hold, checked in one place.

    @dataclass(frozen=True, kw_only=True)
    class Example(SeedOptions):
        steps: int = option(1000, "Updates of the model.", least=0)
        design: Literal["plain", "pairs"] = option("plain", "How draws are laid out.")

Annotations give the kind (numbers, text, `Literal` words, tuples, None); `option` gives the default, the help text and
the range. `Example.declared()` lists all of it: the YAML reader, the commands' help, the documentation and
threestudio's `Config` are made from that. An option that several classes share is declared in a base class; a subclass
may give it another default or a narrower kind: `class Mine(Example, defaults={"steps": 10}, kinds={"design": ...})`.

Pure Python: no torch is imported here.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union

from carv_3d.errors import CarvError, shown


class Limits(NamedTuple):
    """The range of a number, or of each number of a list."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, value: Any) -> bool:
        """Whether a number, or every number of a list, lies in the range; True for anything else."""
        if isinstance(value, (list, tuple)):
            return all(map(self.hold, value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """ " of at least 1", " from 0 to 1", or nothing."""
        if self.least is not None and self.most is not None:
            return f" from {self.least:g} to {self.most:g}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        parts = [f"{word} {'2^63' if end == 2**63 else f'{end:g}'}" for word, end in words.items() if end is not None]
        return " " + " and ".join(parts) if parts else ""


class Option(NamedTuple):
    """One declared option, as read from its class."""

    name: str
    kind: Any
    default: Any
    help: str
    limits: Limits

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, if it takes any."""
        return tuple(str(word) for kind in _members(self.kind) for word in _literals(kind))

    @property
    def is_group(self) -> bool:
        """Whether it holds options of its own."""
        return isinstance(self.kind, type) and issubclass(self.kind, Options)

    @property
    def is_text(self) -> bool:
        """Whether any text is a value of it."""
        return str in _members(self.kind)

    @property
    def due(self) -> str:
        """What a value must be: "a whole number of at least 1, or auto"."""
        words = [_words(kind, self.limits) for kind in _members(self.kind)]
        return ", or ".join(words)

    def check(self, value: Any, name: str | None = None) -> Any:
        """The value as it is kept.

        Raises:
            CarvError: for a wrong kind or range, in a sentence that calls the option `name`.
        """
        name, kinds = name or self.name, _members(self.kind)
        if value is None and type(None) in kinds:
            return None
        for kind in sorted(kinds, key=lambda k: k is str):  # text last: it would take anything
            if typing.get_origin(kind) is Annotated:
                return kind.__metadata__[0].check(name, value, self.limits)
            ok, out = _convert(value, kind)
            if ok and self.limits.hold(out):
                return out
        near = difflib.get_close_matches(str(value), self.choices, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise CarvError(f"{name} is {shown(value)}; it must be {self.due}{hint}.")


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Iterable[str] = (),
) -> Any:
    """A dataclass field with its help text and range.

    Args:
        default: its value, or for a group of options the class or function that makes it.
        help: what it does, in a sentence.
        least: of a number (or each number of a list), included; so is `most`, while `above` and `below` are not.
        choices: the words of a `str` that names an entry of a table; fixed words are better a `Literal` annotation.
    """
    metadata = {"help": help, "limits": Limits(least, above, most, below), "choices": tuple(choices)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of all option classes: every field is checked, and a misspelt keyword is named with the nearest right one.

    Raises:
        CarvError: naming the option, what was given and what is due.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    renamed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls,
        defaults: Mapping[str, Any] = types.MappingProxyType({}),
        kinds: Mapping[str, Any] = types.MappingProxyType({}),
        renamed: Mapping[str, str] = types.MappingProxyType({}),
        **more: Any,
    ) -> None:
        """Other defaults, or other kinds, for inherited options; and names that files of the last version have."""
        super().__init_subclass__(**more)
        cls.renamed = {**cls.renamed, **renamed}
        for name in {**defaults, **kinds}:
            base = next(b for b in cls.__mro__[1:] if name in getattr(b, "__dataclass_fields__", {}))
            old = next(f for f in dataclasses.fields(base) if f.name == name)
            kind = kinds.get(name) or typing.get_type_hints(base, include_extras=True)[name]
            cls.__annotations__ = {**inspect.get_annotations(cls), name: kind}
            default = defaults.get(name, old.default)
            setattr(cls, name, dataclasses.field(default=default, metadata=old.metadata, kw_only=old.kw_only))

    def __new__(cls, *values: Any, **named: Any) -> Any:
        for name in named:
            if name not in cls.__dataclass_fields__:
                known = list(cls.__dataclass_fields__)
                near = [cls.renamed[name]] if name in cls.renamed else difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
                raise CarvError(f"{cls.__name__} has no option {shown(name)}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, declared in self.declared().items():
            self._set(name, declared.check(getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    @functools.cache  # noqa: B019: classes live as long as the process
    def declared(cls) -> Mapping[str, Option]:
        """Every option by name, inherited ones included, in order."""
        hints = typing.get_type_hints(cls, include_extras=True)
        out = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            meta, kind, default = field.metadata, hints[field.name], field.default
            if meta.get("choices"):
                kind = Literal[meta["choices"]]
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            out[field.name] = Option(field.name, kind, default, meta.get("help", ""), meta.get("limits", Limits()))
        return types.MappingProxyType(out)

    def walk(self, path: str = "") -> Iterator[tuple[str, Option, Any]]:
        """(dotted name, option, value here) of everything within, groups before what they hold."""
        for name, declared in self.declared().items():
            full, value = f"{path}.{name}" if path else name, getattr(self, name)
            yield full, declared, value
            if isinstance(value, Options):
                yield from value.walk(full)

    def _not_above(self, low: str, high: str) -> None:
        """CarvError unless the first option is at most the second."""
        ends = getattr(self, low), getattr(self, high)
        if None not in ends and ends[0] > ends[1]:
            raise CarvError(
                f"{low} is {getattr(self, low)}, above {high}, which is {getattr(self, high)}; change one of the two."
            )


def check_draws(num_draws: int, antithetic: bool, groups: int = 1) -> None:
    """CarvError where K draws do not divide into equal groups, of pairs if antithetic."""
    if isinstance(num_draws, bool) or not isinstance(num_draws, Integral) or num_draws < 1:
        raise CarvError(f"num_draws is {shown(num_draws)}; it must be a whole number of at least 1.")
    if num_draws % groups:
        raise CarvError(f"num_draws is {num_draws} and groups {groups}; the draws must divide into equal groups.")
    unit = 2 * groups if antithetic else groups
    if num_draws % unit:
        inside = f" in {groups} groups" if groups > 1 else ""
        raise CarvError(
            f"num_draws is {num_draws}{inside}, and antithetic draws come in pairs: "
            f"set num_draws to {num_draws + unit - num_draws % unit} or antithetic to false."
        )


# What several option classes share.

Proposal = Literal["uniform", "weight", "adaptive"]
Stratify = Literal["none", "render", "global"]
Weighting = Literal["sds", "uniform", "fantasia3d"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """Where random numbers begin."""

    seed: int = option(0, "Of everything that is drawn.", least=0, below=2**63)


@dataclass(frozen=True, kw_only=True)
class RunOptions(SeedOptions):
    """What every run has."""

    device: Device = option("auto", "Where to compute; auto: CUDA where there is one.")


@dataclass(frozen=True)
class DesignOptions(Options):
    """How the draws of a step are laid out, see `designs.Design`."""

    stratify: Stratify = option(
        "render", "Strata over the timesteps: none; render, K in each render; global, over all renders of a step."
    )
    antithetic: bool = option(False, "Draws in pairs with the same t and opposite noise; K must be even.")


@dataclass(frozen=True, kw_only=True)
class DrawOptions(DesignOptions):
    """How many draws, and their layout."""

    num_draws: int | Literal["auto"] = option(4, "K, draws of (t, eps) per render.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_draws != "auto":
            self._check_layout()

    def _check_layout(self) -> None:
        check_draws(self.K, self.antithetic)

    @property
    def K(self) -> int:
        """`num_draws` where it is a number."""
        assert isinstance(self.num_draws, int)
        return self.num_draws


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(DrawOptions):
    """Draws, where their timesteps come from, and how many are evaluated at once."""

    proposal: Proposal = option(
        "weight", "Where timesteps are drawn: uniform; weight, in proportion to w(t); adaptive, to w(t) RMS|residual|."
    )
    max_batch: int = option(16, "Samples denoised at once; halved by itself when memory runs out.", least=1)


@dataclass(frozen=True, kw_only=True)
class ResidualOptions(Options):
    """What is done to each draw's residual before the mean."""

    grad_clip: float | None = option(
        None,
        "Elementwise limit of each draw's residual, before p/q and the mean, so that K does not change the objective.",
        above=0,
    )
    control_variate: bool = option(
        False, "Subtract from each draw what it takes from its own noise, learnt on earlier steps."
    )


@dataclass(frozen=True, kw_only=True)
class StepOptions(Options):
    """The range of timesteps, both ends included."""

    min_step: int = option(20, "Smallest timestep.", least=0)
    max_step: int = option(980, "Largest timestep.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._not_above("min_step", "max_step")


@dataclass(frozen=True, kw_only=True)
class WeightingOptions(Options):
    """The objective's weight."""

    weighting: Weighting = option("sds", "w(t). sds: 1 - abar; uniform: 1; fantasia3d: sqrt(abar) (1 - abar).")


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """How many renders, or generated samples, a step has."""

    batch_size: int = option(1, "R, renders (or generated samples) of a step, per process.", least=1)


@dataclass(frozen=True, kw_only=True)
class LatticeOptions(Options):
    """A regular lattice over the scene."""

    resolution: int = option(48, "Points along an edge.", least=2, most=1024)


@dataclass(frozen=True, kw_only=True)
class NamedOptions(Options):
    """A choice by name."""

    name: str = option("", "Which one.")


@dataclass(frozen=True, kw_only=True)
class AdamOptions(Options):
    """Of Adam and AdamW."""

    lr: float = option(1e-3, "Learning rate.", above=0)
    betas: tuple[float, float] = option((0.9, 0.999), "Decay of the two running means.", least=0, below=1)


# Kinds.


def _members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the kind alone."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _literals(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _convert(value: Any, kind: Any) -> tuple[bool, Any]:
    """(whether the value is of the kind, the value as it is kept)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if kind is Any:
        return True, value
    if origin is Literal:
        return isinstance(value, str) and value in arguments, value
    if kind is int:
        whole = number and (isinstance(value, Integral) or int(value) == value)
        return (True, int(value)) if whole else (False, None)
    if kind is float:
        return (True, float(value)) if number else (False, None)
    if kind is Path:
        return (True, Path(value)) if isinstance(value, (str, Path)) else (False, None)
    if isinstance(kind, type) and origin is None:  # bool, str, groups, None
        return isinstance(value, kind), value
    if origin in (list, tuple, collections.abc.Sequence):
        return _convert_items(value, origin, arguments)
    raise TypeError(f"options know no annotation {kind}")


def _convert_items(value: Any, origin: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Sequence):
        return False, None
    fixed = origin is tuple and Ellipsis not in arguments
    kinds = arguments if fixed else [arguments[0]] * len(value)
    if len(kinds) != len(value):
        return False, None
    items = [_convert(item, kind) for item, kind in zip(value, kinds)]
    if not all(ok for ok, _ in items):
        return False, None
    return True, (tuple if origin is tuple else list)(out for _, out in items)


def _words(kind: Any, limits: Limits) -> str:
    """What a value of a kind is called."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{kind.__metadata__[0].words}{limits}"
    if origin is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else str(arguments[0])
    if origin in (list, tuple, collections.abc.Sequence):
        items = {str: "texts", Path: "files"}.get(arguments[0], "numbers")
        count = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
        return f"a list of {count}{items}{limits}"
    if kind in (int, float):
        return f"a {'whole ' * (kind is int)}number{limits}"
    words = {bool: "true or false", str: "text", Path: "a path", type(None): "null"}
    return words.get(kind, "a group of options")
