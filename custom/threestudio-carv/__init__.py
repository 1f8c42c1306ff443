"""CARV guidance for threestudio: the objective of its own guidance at a lower variance per second."""

import torch as _torch

if int(_torch.__version__.split(".")[0]) < 2:
    raise ImportError(
        "threestudio-carv needs torch 2.0 or newer, and threestudio's environment has "
        + _torch.__version__
        + ": pip install 'torch>=2.0' there."
    )
try:
    import carv_3d as _carv_3d  # noqa: F401
except ImportError as error:
    raise ImportError(
        "threestudio-carv needs the package carv_3d in threestudio's own environment: activate it and run "
        "`bash install.sh --threestudio PATH/TO/threestudio` in the carv_3d repository."
    ) from error

from . import (  # noqa: F401
    checkpoint,
    controlnet,
    deep_floyd,
    guidance,
    instructpix2pix,
    mvdream,
    prompt_processor,
    sdi,
    unified,
    vsd,
    xl,
    zero123,
    zero123_unified,
)  # fmt: skip
