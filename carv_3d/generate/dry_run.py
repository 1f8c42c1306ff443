"""`carv generate --dry-run`: settings, models, time and memory of a run, measured; nothing is written."""

from __future__ import annotations

import time

from carv_3d.config.request import GenerateRequest
from carv_3d.core.batching import out_of_memory_as
from carv_3d.errors import CarvError, printable
from carv_3d.generate.config import config_to_yaml
from carv_3d.generate.request import resolve
from carv_3d.generate.run import ALL_TOO_LARGE, N_VIEWS
from carv_3d.generate.trainer import TextTo3D, check_prompt
from carv_3d.io.files import check_writable
from carv_3d.runs.dry_run import print_costs
from carv_3d.runs.progress import duration

PAGE_SECONDS = 5.0  # mesh, films and page


def dry_run(request: GenerateRequest) -> int:
    """Print settings, models, and the measured time and memory of a run; write nothing."""
    config, folder = resolve(request)
    check_prompt(config)
    check_writable(folder)
    print(config_to_yaml(config), end="")
    print(printable(f"# folder: {folder}"))
    from carv_3d.teachers.availability import could_be_fetched
    from carv_3d.teachers.load import find_model

    guidance = config.system.guidance
    name = guidance.pretrained_model_name_or_path
    try:
        where = find_model(name, local_files_only=True, model_config=guidance.model_config)[0]
        print(printable(f"# model: {name}, {where}"))
    except CarvError as error:
        if not could_be_fetched(name):
            raise
        print(printable(f"# model: {name} is not on this machine; a run would download it first ({error})"))
        print("# time and memory: measured once the model is here")
        return 0
    with out_of_memory_as(ALL_TOO_LARGE):
        host = TextTo3D(config)
        what = f"field: {host.config.system.geometry_type}"
        print_costs(host, what, host.field, host.device, config.trainer.max_steps, lambda: _outputs(host))
    return 0


def _outputs(host: TextTo3D) -> str:
    data = host.config.data
    begin = time.perf_counter()
    host.views(host.orbit(1), data.eval_height, data.eval_width)
    views = data.n_test_views + (N_VIEWS if data.n_test_views % N_VIEWS else 0)
    return f"then {duration((time.perf_counter() - begin) * views + PAGE_SECONDS)} for the outputs"
