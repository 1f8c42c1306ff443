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

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from carv_3d.core.kinds import Limits, convert, literals, members, words_for
from carv_3d.errors import CarvError, shown


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
        return tuple(str(word) for kind in members(self.kind) for word in literals(kind))

    @property
    def is_group(self) -> bool:
        """Whether it holds options of its own."""
        return isinstance(self.kind, type) and issubclass(self.kind, Options)

    @property
    def is_text(self) -> bool:
        """Whether any text is a value of it."""
        return str in members(self.kind)

    @property
    def due(self) -> str:
        """What a value must be: "a whole number of at least 1, or auto"."""
        words = [words_for(kind, self.limits) for kind in members(self.kind)]
        return ", or ".join(words)

    def check(self, value: Any, name: str | None = None) -> Any:
        """The value as it is kept.

        Args:
            value: as given.
            name: what a message calls the option; its own name if None.

        Raises:
            CarvError: for a wrong kind or range.
        """
        name, kinds = name or self.name, members(self.kind)
        if value is None and type(None) in kinds:
            return None
        for kind in sorted(kinds, key=lambda k: k is str):  # text last: it would take anything
            if typing.get_origin(kind) is Annotated:
                return kind.__metadata__[0].check(name, value, self.limits)
            ok, out = convert(value, kind)
            if ok and self.limits.hold(out):
                return out
        near = difflib.get_close_matches(shown(value).strip("'"), self.choices, 1)
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
        least: of a number (or each number of a list), included.
        above: of a number, not included.
        most: of a number, included.
        below: of a number, not included.
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
        helps: Mapping[str, str] = types.MappingProxyType({}),
        renamed: Mapping[str, str] = types.MappingProxyType({}),
        **more: Any,
    ) -> None:
        """Other defaults, kinds or help texts for inherited options; and names that files of the last version have."""
        super().__init_subclass__(**more)
        cls.renamed = {**cls.renamed, **renamed}
        for name in {**defaults, **kinds, **helps}:
            base = next(b for b in cls.__mro__[1:] if name in getattr(b, "__dataclass_fields__", {}))
            old = next(f for f in dataclasses.fields(base) if f.name == name)
            kind = kinds.get(name) or typing.get_type_hints(base, include_extras=True)[name]
            cls.__annotations__ = {**inspect.get_annotations(cls), name: kind}
            default, metadata = defaults.get(name, old.default), {**old.metadata}
            metadata |= {"choices": ()} if name in kinds else {}
            metadata |= {"help": helps[name]} if name in helps else {}
            setattr(cls, name, dataclasses.field(default=default, metadata=metadata, kw_only=old.kw_only))

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """Refuse an unknown keyword with the nearest right one."""
        if len(values) > sum(not field.kw_only for field in cls.__dataclass_fields__.values()):
            raise CarvError(f"{cls.__name__} got {shown(values[-1])} without a name; write it as NAME=VALUE.")
        for name in named:
            if name not in cls.__dataclass_fields__:
                raise unknown_option(cls.__name__, name, list(cls.__dataclass_fields__), cls.renamed)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, declared in self.declared().items():
            self._set(name, declared.check(getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    @functools.cache
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


def unknown_option(owner: str, name: str, known: list[str], renamed: Mapping[str, str]) -> CarvError:
    """What to raise for a keyword that `owner` has not, with the nearest of those that it has."""
    near = [renamed[name]] if name in renamed else difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
    return CarvError(f"{owner} has no option {shown(name)}; {hint}")


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
Weighting = Literal[
    "sds", "uniform", "fantasia3d", "inverse_snr", "min_snr", "one_minus_alpha", "fantasia3d_alpha", "sigma_over_alpha"
]
WEIGHTINGS_HELP = (
    "w(t). sds: 1 - abar; uniform: 1; fantasia3d: sqrt(abar) (1 - abar); inverse_snr: sigma^2 / alpha^2; min_snr: "
    "min(SNR, 5) / SNR; one_minus_alpha: 1 - sqrt(abar); fantasia3d_alpha: abar^(1/4) (1 - sqrt(abar)); "
    "sigma_over_alpha: sigma / alpha."
)
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """Where random numbers begin."""

    seed: int = option(0, "Seed of all random numbers.", least=0, below=2**63)


@dataclass(frozen=True, kw_only=True)
class RunOptions(SeedOptions):
    """What every run has."""

    device: Device = option("auto", "Where to compute; auto: CUDA where there is one.")
    logger: Literal["csv", "tensorboard", "wandb"] = option(
        "csv", "Where figures, images and mesh go besides metrics.csv: tensorboard, or wandb (Weights & Biases)."
    )


@dataclass(frozen=True, kw_only=True)
class DesignOptions(Options):
    """How the draws of a step are laid out, see `designs.Design`."""

    stratify: Stratify = option(
        "render", "Strata over the timesteps: none; render, K in each render; global, over all renders of a step."
    )
    antithetic: bool = option(False, "Draws in pairs with the same t and opposite noise; K must be even.")


@dataclass(frozen=True, kw_only=True)
class DrawOptions(DesignOptions):
    """How many draws, and their layout."""

    num_draws: int | Literal["auto"] = option(4, "K, draws of (t, eps) per render.", least=1, most=2**40)

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
    max_batch: int = option(16, "Samples denoised at once; halved by itself when memory runs out.", least=1, most=2**40)


@dataclass(frozen=True, kw_only=True)
class ResidualOptions(Options):
    """What is done to each draw's residual before the mean."""

    grad_clip: float | None = option(
        None,
        "Elementwise limit of each draw's residual, before p/q and the mean, so that K does not change the objective.",
        above=0,
        most=1e30,
    )
    control_variate: bool = option(
        False, "Subtract from each draw what it takes from its own noise, learnt on earlier steps."
    )


@dataclass(frozen=True, kw_only=True)
class StepOptions(Options):
    """The range of timesteps, both ends included."""

    min_step: int = option(20, "Smallest timestep.", least=0, most=10**6)
    max_step: int = option(980, "Largest timestep.", least=0, most=10**6)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_step, self.max_step
        if None not in (low, high) and low > high:
            raise CarvError(f"min_step is {low}, above max_step, which is {high}; change one of the two.")


@dataclass(frozen=True, kw_only=True)
class WeightingOptions(Options):
    """The objective's weight."""

    weighting: Weighting = option("sds", WEIGHTINGS_HELP)


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """How many renders, or generated samples, a step has."""

    batch_size: int = option(1, "R, renders (or generated samples) of a step, per process.", least=1, most=2**16)


@dataclass(frozen=True, kw_only=True)
class ProjectionOptions(SeedOptions):
    """The random projection of gradients."""

    dim: int | None = option(
        2048, "Numbers that the gradient is projected to; null keeps the whole gradient.", least=1, most=2**24
    )


@dataclass(frozen=True, kw_only=True)
class AdamOptions(Options):
    """Of Adam and AdamW."""

    lr: float = option(1e-3, "Learning rate.", above=0, most=1000)
    betas: tuple[float, float] = option((0.9, 0.999), "Decay of the two running means.", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Where new runs are made."""

    engine: Literal["local", "ray"] = option("local", "local, or ray: several at once.")
    address: str | None = option(None, "HOST:PORT of a Ray cluster; else one starts here.")
    workers: int | None = option(None, "Workers of the Ray started here; else all cores.", least=1, most=4096)
