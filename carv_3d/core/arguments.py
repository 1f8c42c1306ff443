"""A call that failed over its arguments ends in one sentence: which one, what was given, and what is due.

Annotations say what is due. They are looked at after a failure alone: a call that works costs nothing and is never
refused, whatever it was given.
"""

from __future__ import annotations

import collections.abc
import errno
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

import torch
from torch import Tensor

from carv_3d.errors import CarvError, CarvTypeError, first_line, shown

P = ParamSpec("P")
T = TypeVar("T")
FAILURES = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError, OSError, AssertionError)
WORDS: dict[Any, str] = {
    Tensor: "a torch tensor with data", torch.Generator: "a torch.Generator", torch.device: "a device such as cpu",
    Path: "a path", str: "text", int: "a whole number", float: "a number", bool: "True or False", type(None): "None",
}  # fmt: skip
NUMBERS = {int: Integral, float: Real}
LISTED = 100  # items of a list that are looked at


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose failures over its arguments are a CarvError each."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except CarvError:
            raise
        except FAILURES as error:
            if isinstance(error, TypeError) and raised_by_the_call(error):
                parameters = inspect.signature(function).parameters.values()
                plain = [p.replace(annotation=p.empty) for p in parameters if p.name not in ("self", "cls")]
                name = function.__qualname__.removesuffix(".__init__")
                raise CarvTypeError(f"{first_line(error)}; the call is {name}{inspect.Signature(plain)}.") from None
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                raise CarvError(f"the name {shown(error.filename)} is too long for a path; give another.") from error
            refuse_arguments(function, inspect.signature(function).bind(*args, **kwargs).arguments, error)
            raise

    return call


def refuse_arguments(function: Callable[..., Any], given: Mapping[str, Any], error: Exception) -> None:
    """CarvError for the first argument that is not what its annotation says; for code that a wrapper would slow down.

    Args:
        function: whose annotations count.
        given: its arguments by name.
        error: what they led to.
    """
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # of what is imported for type checkers alone
        hints = {}
    for name, value in given.items():
        kind = hints.get(name, Any)
        variable = inspect.signature(function).parameters[name].kind in (2, 4)  # *args, **kwargs
        if not variable and not fits(value, kind):
            raise CarvError(f"{name} is {described(value)}{_holding(value, kind)}; it must be {due(kind)}.") from error
        if torch.device in (kind, *typing.get_args(kind)) and isinstance(value, (str, torch.device)):
            try:
                torch.empty(1, device=value)
            except (RuntimeError, AssertionError, NotImplementedError) as reason:  # AssertionError: built without CUDA
                absent = f"{name} is {value}, which torch cannot use here ({first_line(reason)})"
                raise CarvError(f"{absent}; give cpu, or see carv doctor.") from error


def raised_by_the_call(error: TypeError) -> bool:
    """Whether the arguments did not fit, so that the function itself never ran; asked where it was called."""
    inner = error.__traceback__ and error.__traceback__.tb_next
    while inner is not None and inner.tb_frame.f_globals.get("__name__") == "torch.nn.modules.module":
        inner = inner.tb_next  # what calls a module's forward
    return error.__traceback__ is not None and inner is None


def refuse_text(name: str, value: Any) -> None:
    """CarvError for a text where a list of texts is due: each of its letters would be taken for one."""
    if isinstance(value, str):
        raise CarvError(f"{name} is {shown(value)}; it must be a list of texts: [{shown(value)}].")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; True for an annotation that says nothing."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        is_device = isinstance(value, str) and torch.device in arguments
        return _is_device(value) if is_device else any(fits(value, member) for member in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is collections.abc.Callable or kind is Callable:
        return callable(value)
    if origin in (list, tuple, collections.abc.Sequence):
        listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return listed and all(fits(item, arguments[0]) for item in value[:LISTED])
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, (str, Path))
    if not isinstance(origin or kind, type) or kind is Any:
        return True
    if getattr(kind, "_is_protocol", False):
        own = ((*vars(base), *inspect.get_annotations(base)) for base in kind.__mro__[:-1])
        members = {name for names in own for name in names if not name.startswith("_")}
        return all(hasattr(value, name) for name in members)
    return isinstance(value, origin or kind) and not (kind is Tensor and value.is_meta)


def due(kind: Any) -> str:
    """What a value of an annotation's kind is called."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(due(member) for member in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is collections.abc.Callable or kind is Callable:
        return "a function"
    if origin in (list, tuple, collections.abc.Sequence):
        items = {str: "texts", Tensor: "torch tensors", int: "whole numbers", float: "numbers"}
        return f"a list of {items.get(arguments[0], 'such items')}"
    return WORDS.get(kind) or with_article(getattr(origin or kind, "__name__", str(kind)))


def described(value: Any) -> str:
    """A value as an error names it: short ones themselves, others by their kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return shown(value)
    if isinstance(value, Tensor) and value.is_meta:
        return "a tensor without data"
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """The name behind a or an."""
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _holding(value: Any, kind: Any) -> str:
    """What makes a list of the right kind a wrong one: its first item that does not fit."""
    for member in (kind, *typing.get_args(kind)):
        if typing.get_origin(member) in (list, tuple, collections.abc.Sequence) and isinstance(value, (list, tuple)):
            item = typing.get_args(member)[0]
            return next((f" that holds {described(x)}" for x in value[:LISTED] if not fits(x, item)), "")
    return ""


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
