"""`carv doctor --threestudio PATH`: is this checkout, with this Python, ready for the extension threestudio-carv?"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path

from carv_3d.cli.finding import Finding, installed, python
from carv_3d.errors import first_line
from carv_3d.hosts.checkout import LINK, check_checkout, how_to_link, link_problem
from carv_3d.io.files import expanded

# by package: a module that threestudio imports and a CPU machine mostly lacks, or whose absence ends its launch
HOSTS = ("pytorch_lightning", "omegaconf", "nerfacc", "tinycudann", "nvdiffrast", "jaxtyping", "typeguard", "trimesh")
PACKAGES = {"diffusers": "loads the models", "transformers": "reads prompts", "carv_3d": "this package"}
LOADED = {"diffusers": "UNet2DConditionModel", "transformers": "CLIPTextModel"}  # which bring much else along
CONFIG = f"custom/{LINK}/configs/carv-dreamfusion-tiny.yaml"


def examine(path: str) -> list[Finding]:
    """All findings, in the order in which they are shown; torch, diffusers and transformers are loaded.

    Raises:
        CarvError: `path` is no threestudio checkout.
    """
    root = expanded(path)
    check_checkout(root)
    link_line = how_to_link(root)
    findings = [Finding("checkout", True, f"threestudio {_version(root)} in {root}", "", True)]
    findings.append(python("make threestudio's environment with Python 3.10 or 3.11"))
    findings += _torch()
    for module, why in PACKAGES.items():
        problem = _problem(module)
        detail = f"{problem} ({why})" if problem else f"{installed(module)} ({why})"
        fix = link_line if module == "carv_3d" else f"pip install {module}, in a version that fits the others"
        findings.append(Finding(module, not problem, detail, fix, True))
    missing = [module for module in HOSTS if importlib.util.find_spec(module) is None]
    state = f"lacks {', '.join(missing)}" if missing else "has what it imports"
    fix = "install threestudio first, as its own README says, or activate the environment where it is installed"
    findings.append(Finding("threestudio's packages", not missing, f"{sys.prefix} {state}", fix, True))
    findings.append(_link(root, link_line))
    return findings


def _problem(module: str) -> str:
    """Why the module cannot be used; empty if it can."""
    if importlib.util.find_spec(module) is None:
        return "not installed"
    try:
        if module in LOADED:
            getattr(importlib.import_module(module), LOADED[module])
    except Exception as error:  # whatever a package that does not fit the others raises
        return f"{installed(module)} does not load: {first_line(error)}"
    return ""


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", False, "not installed", "install threestudio first, as its own README says", True)]
    version = installed("torch")
    good = int(version.split(".")[0]) >= 2 if version[:1].isdigit() else True
    if not good:
        fix = "pip install 'torch>=2.0' in threestudio's environment"
        return [Finding("torch", False, f"{version}, older than 2.0", fix, True)]
    import torch

    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else "none, and threestudio itself needs one"
    return [
        Finding("torch", True, version, "", True),
        Finding("GPU", cuda, gpu, "run it on a machine with an NVIDIA GPU"),
    ]


def _link(root: Path, fix: str) -> Finding:
    here = root / "custom" / LINK
    problem = link_problem(root)
    return Finding("extension", not problem, problem or f"{here} -> {os.path.realpath(here)}", problem and fix, True)


def _version(root: Path) -> str:
    match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", (root / "threestudio" / "__init__.py").read_text())
    return match[1] if match else "of unknown version"
