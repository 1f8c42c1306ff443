"""A stock configuration of threestudio with CARV's guidance in it. No torch is imported here.

Nothing is written: the changes are words key=value, which threestudio's own launcher merges into the stock file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carv_3d.core.options import Options, ResidualOptions, SamplingOptions, check_draws
from carv_3d.errors import CarvError, first_line, shown
from carv_3d.hosts.counterparts import COUNTERPARTS, MIXIN, MODEL, NEW, OUTDATED, PROMPT_PROCESSORS
from carv_3d.io.files import expanded, slug
from carv_3d.io.structured import look_up, read_yaml
from carv_3d.teachers.families import BUILT_IN

SHORT: dict[str, type[Options]] = {
    **dict.fromkeys(SamplingOptions.declared(), SamplingOptions),
    "control_variate": ResidualOptions,
}
"""Options of CARV that are set in every guidance by their last name alone."""
TOP_LEVEL = (
    "name", "description", "tag", "seed", "use_timestamp", "timestamp", "exp_root_dir", "resume", "data_type", "data",
    "system_type", "system", "trainer", "checkpoint",
)  # fmt: skip
PROMPT = "system.prompt_processor.prompt"
FILES = ("resume", "system.weights", "system.geometry_convert_from", "data.image_path", "data.dataroot")
FIX = "name a configuration of threestudio, such as configs/dreamfusion-sd.yaml"


@dataclass(frozen=True)
class CarvConfig:
    """A stock configuration and what is set on top of it.

    config: the result, with its `${...}` unresolved.
    words: key=value for threestudio's launcher.
    lines: what was replaced, and with which K.
    """

    config: Mapping[str, Any]
    words: tuple[str, ...]
    lines: tuple[str, ...]


def with_counterparts(file: Path, words: Sequence[str], folder: Path | None = None) -> CarvConfig:
    """The configuration in `file` with each guidance replaced by its counterpart, every option kept.

    Args:
        file: of threestudio.
        words: key=value; those in SHORT go to each guidance, `prompt` to the prompt processor.
        folder: where relative paths of the configuration begin; that of the checkout.

    Raises:
        CarvError: no configuration of threestudio, an unknown option, a value that cannot be, a file that is not there.
    """
    stock = read_yaml(file, FIX)
    if not isinstance(stock.get("system"), dict) or not any(_guidances(stock)):
        raise CarvError(f"{file} is no configuration of threestudio: it has no system.guidance_type; {FIX}")
    own, short = _sorted_out(words)
    own = [_found_file(word, folder) for word in own]
    config = _merged(stock, own)
    if not isinstance(config.get("system"), dict):
        raise CarvError("the options cannot be set: system is a group of options; name one of them: system.KEY=VALUE")
    _check_groups(config)
    types, lines = _replacements(config)
    keys = [key.removesuffix("_type") for key, kind in _guidances(_merged(config, types)) if kind.startswith("carv-")]
    sampling = [f"system.{key}.{name}={value}" for key in keys for name, value in short.items()]
    config = _merged(config, [*types, *sampling])
    lines = [f"{line}{_draws(config, line)}" for line in lines]
    more = [*types, *sampling, *_mixin(config, keys), *_plain_tag(config, own)]
    config = _merged(config, more)
    _check_files(config, folder)
    return CarvConfig(config, (*own, *more), tuple(lines))


def _guidances(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the system: each key that names a guidance's type, and the type."""
    for key, value in config["system"].items():
        if re.fullmatch(r"\w*guidance\w*_type", str(key)) and isinstance(value, str):
            yield str(key), value


def _check_groups(config: Mapping[str, Any]) -> None:
    """CarvError for a value in place of a group of options, which threestudio would end with a traceback for."""
    system = config["system"]
    types = [str(key) for key, kind in system.items() if str(key).endswith("_type") and isinstance(kind, str)]
    parts = [key.removesuffix("_type") for key in types]
    groups = {f"system.{part}": system.get(part, {}) for part in parts}
    groups |= {name: config.get(name, {}) for name in ("data", "trainer", "checkpoint")}
    for name, value in groups.items():
        if not isinstance(value, Mapping) and not (isinstance(value, str) and "${" in value):
            state = "nothing" if value is None else repr(value)
            raise CarvError(f"{name} is a group of options, and {state} is set; name one of them: {name}.KEY=VALUE")


def _sorted_out(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words for the launcher, texts in quotes; and CARV's options by name."""
    own, short = [], {}
    for word in words:
        name, _, value = word.partition("=")
        if name in SHORT:
            short[name] = value
            continue
        name = PROMPT if name == "prompt" else name
        if name.partition(".")[0] not in TOP_LEVEL:
            near = difflib.get_close_matches(name, [*SHORT, *TOP_LEVEL, "prompt"], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join([*SHORT, 'prompt', *TOP_LEVEL])}"
            raise CarvError(f"unknown option {name!r}; {hint}")
        whole = ".".join(filter(None, name.split(".")))
        if whole != name:
            raise CarvError(f"{shown(word)} is no option: a name is missing at a dot; write {whole}=VALUE")
        own.append(f"{name}={_quoted(name, value)}" if _is_text(name) else f"{name}={value}")
    for name, value in short.items():
        read = _read(f"{name}={value}")[name]
        SHORT[name].declared()[name].check(read, name)
    K, pairs = (_read(f"x={short.get(name, default)}")["x"] for name, default in (("num_draws", 4), ("antithetic", "")))
    if isinstance(K, int):
        check_draws(K, pairs is True)
    return own, short


def _is_text(name: str) -> bool:
    return (
        re.fullmatch(r"system\.prompt_processor\.(negative_)?prompt(_front|_side|_back|_overhead)?", name) is not None
    )


def _quoted(name: str, text: str) -> str:
    """A prompt as YAML that is this text and nothing else."""
    if "${" in text:
        raise CarvError(f"{name} holds ${{, which threestudio reads as a reference to another option; leave it out")
    return json.dumps(text, ensure_ascii=False)


def _read(word: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise CarvError(f"the value of {shown(word)} cannot be read: {first_line(error)}") from error
    assert isinstance(value, dict)
    return {str(key): inner for key, inner in value.items()}


def _merged(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.to_container(OmegaConf.merge(config, *map(_read, words)), resolve=False)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise CarvError(f"the options cannot be set: {first_line(error)}") from error
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _replacements(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Words that name the counterparts, and a line on each guidance."""
    words, lines = [], []
    for key, stock in _guidances(config):
        full = f"system.{key}"
        if stock in COUNTERPARTS:
            words.append(f"{full}={COUNTERPARTS[stock].name}")
            lines.append(f"{full}: {stock} -> {COUNTERPARTS[stock].name}")
        elif stock in NEW or stock in {counterpart.name for counterpart in COUNTERPARTS.values()}:
            lines.append(f"{full}: {stock} is CARV's already")
        else:
            lines.append(f"{full}: {stock} has no counterpart and is left as it is")
    kind, model = (look_up(config, f"system.prompt_processor{end}") for end in ("_type", f".{MODEL}"))
    if kind in PROMPT_PROCESSORS and (model in BUILT_IN or kind in OUTDATED):
        words.append(f"system.prompt_processor_type={PROMPT_PROCESSORS[kind]}")
        lines.append(f"system.prompt_processor_type: {kind} -> {PROMPT_PROCESSORS[kind]}")
    return words, lines


def _draws(config: Mapping[str, Any], line: str) -> str:
    """K of the guidance that a line is on."""
    key, kind = line.partition(":")[0], look_up(config, line.partition(":")[0])
    by_name = {counterpart.name: counterpart.num_draws for counterpart in COUNTERPARTS.values()}
    if "guidance" not in key or not str(kind).startswith("carv-"):
        return ""
    K = look_up(config, f"{key.removesuffix('_type')}.num_draws")
    return f", K = {by_name.get(kind, 4) if K is None else K}"


def _mixin(config: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    kind = config.get("system_type")
    if not keys or not isinstance(kind, str) or MIXIN in re.split("[:,]", kind):
        return []
    return [f"system_type={kind}{',' if ':' in kind else ':'}{MIXIN}"]


def _plain_tag(config: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """A run's folder is called as its prompt: one that is a path gets a plain name."""
    prompt = look_up(config, PROMPT)
    by_user = any(word.startswith("tag=") for word in words)
    plain = re.fullmatch(r"\w[^/\\\0\n]{0,99}", str(prompt))
    if by_user or plain or not isinstance(prompt, str) or prompt == "???" or PROMPT not in str(config.get("tag")):
        return []
    return [f"tag={slug(prompt)}"]


def _found_file(word: str, folder: Path | None) -> str:
    """A relative path of the command line is one from here, or else from the checkout."""
    name, _, value = word.partition("=")
    path = expanded(value)
    if name not in FILES or not value or "${" in value or path.is_absolute() or not path.exists():
        return f"{name}={path}" if name in FILES and value.startswith("~") else word
    return f"{name}={json.dumps(str(path.absolute()), ensure_ascii=False)}"


def _check_files(config: Mapping[str, Any], folder: Path | None) -> None:
    for name in FILES:
        value = look_up(config, name)
        if folder is None or not isinstance(value, str) or not value or value == "???":
            continue
        if "${" in value or "LAST" in value:  # resolved by threestudio, LAST as the newest run's folder
            continue
        if not (folder / value).exists():
            raise CarvError(f"{name} names {value}, which is not there; give a path from {folder}, or a whole one")


def open_values(config: Mapping[str, Any], path: str = "") -> list[str]:
    """The names of options that the configuration leaves to the user (`???`)."""
    names = []
    for key, value in config.items():
        full = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            names += open_values(value, full)
        elif value == "???":
            names.append(full)
    return names
