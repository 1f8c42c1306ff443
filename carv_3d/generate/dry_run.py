"""`carv generate --dry-run`: settings, models, time and memory of a run, measured; nothing is written."""

from __future__ import annotations

import time

from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.devices import peak_memory
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml
from carv_3d.generate.request import Request, resolve
from carv_3d.generate.run import N_VIEWS, SCENE_TOO_LARGE
from carv_3d.generate.trainer import TextTo3D, check_prompt
from carv_3d.io.files import check_writable
from carv_3d.runs.progress import duration, seconds_a_step


def dry_run(request: Request, steps: int = 2) -> int:
    """Tell settings, models, time and memory of a run, measured over `steps` steps; write nothing."""
    config, folder = resolve(request)
    check_prompt(config)
    check_writable(folder)
    print(config_to_yaml(config), end="")
    print(f"# folder: {folder}")
    from carv_3d.teachers.availability import could_be_fetched, resolve_model

    name = config.system.guidance.pretrained_model_name_or_path
    try:
        print(f"# model: {name}, {resolve_model(name, local_files_only=True)}")
    except CarvError as error:
        if not could_be_fetched(name):
            raise
        print(f"# model: {name} is not on this machine; a run would download it first ({error})")
        print("# time and memory: measured once the model is here")
        return 0
    with out_of_memory_as(SCENE_TOO_LARGE):
        return _measured(TextTo3D(config), steps)


def _measured(host: TextTo3D, steps: int) -> int:
    config = host.config
    print(f"# device: {host.device}; field: {host.config.system.geometry_type}", end="")
    print(f", {sum(p.numel() for p in host.field.parameters()):,} parameters")
    each = seconds_a_step(host.train_step, steps)
    count = config.data.n_test_views
    begin = time.perf_counter()
    host.views(host.orbit(1), config.data.eval_height, config.data.eval_width)
    export = (time.perf_counter() - begin) * (count + (N_VIEWS if count % N_VIEWS else 0)) + 5.0
    total = each * config.trainer.max_steps
    print(f"# time: about {duration(total)} for {config.trainer.max_steps} steps of {each:.2f} s", end="")
    print(f", then {duration(export)} for the outputs")
    print(f"# memory: about {peak_memory(host.device)}")
    print("# nothing was written")
    return 0
