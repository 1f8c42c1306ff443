"""CARV guidance for threestudio: the objective of its own guidance at a lower variance per second."""

try:
    import carv_3d as _carv_3d  # noqa: F401
except ImportError as error:
    raise ImportError(
        "threestudio-carv needs the package carv_3d in threestudio's own environment: activate it and run "
        "`bash install.sh --threestudio PATH/TO/threestudio` in the carv_3d repository."
    ) from error

from . import checkpoint, guidance, prompt_processor, vsd, xl  # noqa: F401
