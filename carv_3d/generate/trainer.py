"""The built-in text-to-3D trainer: a configuration in, a field that a teacher was distilled into out.

    host = TextTo3D(load_config(prompt="a red mug"))
    while host.step < host.config.trainer.max_steps:
        metrics = host.train_step()
    images = host.views(host.orbit(8), 128, 128)

It knows nothing of folders and files; `carv_3d.generate.run` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from carv_3d.config.annealing import annealed
from carv_3d.core.costs import CostMeter
from carv_3d.core.devices import choose_device, keep_freed_memory
from carv_3d.core.non_finite import NonFiniteSteps
from carv_3d.core.seeds import OwnGlobals, seed_for
from carv_3d.core.signal import SignalToNoise
from carv_3d.errors import CarvError, shown
from carv_3d.generate.config import Config, settled
from carv_3d.generate.needs import check_needs
from carv_3d.generate.view_text import fitted, view_text
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.sds import GuidanceOutput, SDSGuidance
from carv_3d.guidance.self_test import warn_if_poor
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.runs.checkpoint import load_optimizer, state_fits
from carv_3d.scenes.backgrounds import white_or_light
from carv_3d.scenes.cameras import CameraOptions, Cameras, orbit, sample_cameras
from carv_3d.scenes.fields import FIELDS, make_field
from carv_3d.scenes.regularizers import REGULARIZERS
from carv_3d.scenes.rendering import RenderOutput, VolumeRenderer
from carv_3d.scenes.view_phrases import COARSE_PHRASES, FINE_PHRASES
from carv_3d.teachers.base import Teacher
from carv_3d.teachers.timed import TimedTeacher
from carv_3d.tiny.knowledge import model_knowledge

PHASES = ("render", "encode", "denoise", "decode", "backward")


def load_teacher(config: Config, local_files_only: bool = False) -> Teacher:
    """The model of `system.guidance`; CarvError where the prompt is not for it or it is not to be had."""
    from carv_3d.teachers import load

    options = config.system.guidance
    check_prompt(config)
    teacher: Teacher = load.load_teacher(
        options.pretrained_model_name_or_path,
        device=choose_device(config.device),
        half_precision=options.half_precision_weights,
        local_files_only=local_files_only,
        **options.model_files,
    )
    warn_if_poor(teacher, options.pretrained_model_name_or_path)
    return teacher


def check_prompt(config: Config) -> None:
    """Refuse an empty prompt, and words in it or in the negative prompt that the teacher is known not to know."""
    if not config.prompt.strip():
        raise CarvError('the prompt is empty; write what to make, such as "a red mug"')
    named = [phrase for phrase in (*FINE_PHRASES, *COARSE_PHRASES) if phrase in config.prompt.lower()]
    if named and config.system.prompt_processor.view_dependent_prompting:
        raise CarvError(
            f"the prompt names a view ({max(named, key=len)}), and each render's own is said behind it: leave it out, "
            "or set system.prompt_processor.view_dependent_prompting=false"
        )
    objective = config.system.guidance.objective
    if "negative" in OBJECTIVES[objective].needs and not config.system.prompt_processor.negative_prompt.strip():
        raise CarvError(
            f"the objective {objective} needs a negative prompt: set system.prompt_processor.negative_prompt, or "
            "another system.guidance.objective"
        )
    words = config.system.prompt_processor
    model_knowledge(config.system.guidance.pretrained_model_name_or_path).check_prompt(
        config.prompt, words.negative_prompt, words.view_dependent_prompting
    )


class TextTo3D:
    """One scene that is distilled from one prompt.

    Attributes:
        step: steps done so far.
        progress: how much of the run is behind it, in [0, 1], where its length is not given in steps (None: it is);
            schedules and learning rate then stand where that share of `trainer.max_steps` would have them.
        config: resolved: `geometry_type` names the field that was built, `lr` is a number.
        field, renderer, guidance, teacher: the parts.
        render: (R or None, camera options) -> (a step's renders, their cameras), timed.
        prompts: the prompt as the teacher can read it with the words of every view behind it.
        view_text: cameras -> what each one's render is conditioned on ("a red mug, left view").
    """

    def __init__(
        self, config: Config, teacher: Teacher | None = None, log: Callable[[str], None] | None = None
    ) -> None:
        """Build everything; `teacher` is loaded as the config says unless one is given.

        Raises:
            CarvError: the prompt, the model or the device cannot be used.
        """
        check_prompt(config)
        self.device = choose_device(config.device)
        check_needs(config, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        plain = teacher if teacher is not None else load_teacher(config)
        self.meter = CostMeter(self.device)
        self.teacher: Any = TimedTeacher(plain, self.meter)
        self.globals = OwnGlobals(config.seed, self.device)
        system = config.system
        with self.globals.in_use():
            self.field = make_field(system.geometry_type, replace(system.geometry), log=log, device=self.device)
        kind = next(name for name, field_class in FIELDS.items() if type(self.field) is field_class)
        self.config = config = settled(config, kind)
        system = config.system
        if kind != "voxel" and system.loss.lambda_tv != 0:
            raise CarvError(f"lambda_tv is for the voxel geometry, and this is {kind}; set lambda_tv=0")
        self.renderer = VolumeRenderer(self.field, system.renderer)
        self.renderer.train()
        options = system.guidance
        if options.seed is None:
            options = replace(options, seed=seed_for(config.seed, "guidance"))
        self.guidance = SDSGuidance(self.teacher, options)
        if self.guidance.auto is not None:
            self.guidance.auto.step_seconds = config.trainer.step_seconds
        self.render = self.meter.timed("render", self._render)
        apart = "negative" in self.guidance.objective.needs
        self.prompts = fitted(self.teacher, system.prompt_processor)
        self.view_text = partial(view_text, self.teacher, self.prompts, apart=apart)
        self.optimizer = self._optimizer()
        self.generators = {
            name: torch.Generator().manual_seed(seed_for(config.seed, name))
            for name in ("cameras", "background", "samples")
        }
        self.signal = SignalToNoise()
        self.step = 0
        self.progress: float | None = None
        self._ended: float | None = None  # when the last step did
        self.guidance.estimator.non_finite = None  # `_apply` counts
        self.non_finite = NonFiniteSteps(
            "the gradient has not been finite",
            "lower system.optimizer.args.lr or system.guidance.guidance_scale, or set "
            "system.guidance.half_precision_weights=false",
        )

    @property
    def now(self) -> int:
        """Where the schedules are, in steps."""
        return self.step if self.progress is None else round(self.progress * self.config.trainer.max_steps)

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.config.system.optimizer
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.name]
        a = options.args
        return kind(self.field.parameters(), lr=a.lr, betas=tuple(a.betas), eps=a.eps, weight_decay=a.weight_decay)

    def learning_rate(self, step: int) -> float:
        """The rate of step `step` (from 0); exponential: it ends at `final_factor` of itself."""
        scheduler, rate = self.config.system.scheduler, self.config.system.optimizer.args.lr
        assert rate is not None, "the configuration is resolved"
        if scheduler.name == "constant":
            return rate
        progress = min(1.0, step / max(1, self.config.trainer.max_steps - 1))
        return float(rate * scheduler.final_factor**progress)

    def train_step(self) -> dict[str, float]:
        """One step: R renders, one encode, K denoisings each, one backward, one step of the optimizer.

        Returns the step's figures by name (see `carv_3d.generate.run.COLUMNS`).

        Raises:
            CarvError: the gradient has not been finite for many steps.
        """
        begin = time.perf_counter()
        if self.guidance.auto is not None and self._ended is not None:
            self.guidance.auto.skip(begin - self._ended)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.now)
        out, guided, losses = self.backward()
        gradients = [p.grad for p in self.field.parameters() if p.grad is not None]
        finite = self._apply(guided, gradients)
        metrics = {f"loss_{name}": float(loss.detach()) for name, loss in losses.items() if name[:3] != "sds"}
        metrics |= {name: float(value) for name, value in guided.scalars.items()}
        metrics |= {f"seconds_{name}": seconds for name, seconds in self.meter.seconds.items()}
        signal = self.signal.update(gradients)
        if not finite or self.non_finite.count:
            self.non_finite.update(finite)
        self.step += 1
        self._ended = time.perf_counter()
        metrics |= {
            "step": float(self.step),
            "seconds": self._ended - begin,
            "snr_step": signal,
            "lr": self.optimizer.param_groups[0]["lr"],
            "opacity": float(out.opacity.detach().mean()),
            "skipped": 0.0 if finite else 1.0,
            "nfe": float(self.meter.counts["nfe"]),
            "renders": float(self.meter.counts["renders"]),
        }
        return metrics

    def backward(
        self, guidance: SDSGuidance | None = None, data: CameraOptions | None = None
    ) -> tuple[RenderOutput, GuidanceOutput, dict[str, Tensor]]:
        """A step without the optimizer's: its gradient is left in the field's parameters.

        Only generators, meter and occupancy grid move on.

        Args:
            guidance: in place of the run's own.
            data: cameras in place of the run's own.

        Returns:
            The renders, the guidance's output and the unweighted losses.
        """
        lambdas = self._lambdas(self.now)
        out, guided = self._forward(guidance or self.guidance, data or self.config.data, lambdas)
        losses = self._losses(out, guided, lambdas)
        self.optimizer.zero_grad(set_to_none=True)
        weighted = []
        for name, loss in losses.items():
            weighted.append(lambdas[name] * loss)
        self.meter.timed("backward", torch.stack(weighted).sum().backward)()
        return out, guided, losses

    def forward(
        self, guidance: SDSGuidance | None = None, data: CameraOptions | None = None
    ) -> tuple[RenderOutput, GuidanceOutput]:
        """A step's renders and guidance before any backward; arguments as of `backward`."""
        return self._forward(guidance or self.guidance, data or self.config.data, self._lambdas(self.now))

    def _forward(
        self, guidance: SDSGuidance, data: CameraOptions, lambdas: dict[str, float]
    ) -> tuple[RenderOutput, GuidanceOutput]:
        self.meter.seconds = dict.fromkeys(PHASES, 0.0)
        recon, now = self.config.system.guidance.use_recon_loss and lambdas["recon"] != 0, self.now
        R = None if guidance.auto is None else guidance.auto.renders
        with self.globals.in_use():
            if self.renderer.grid is not None:
                self.renderer.update(self.step)
            out, cameras = self.render(R, data)
            self.meter.counts["renders"] += out.comp_rgb.shape[0]
            return out, guidance.guide(out.comp_rgb, self.view_text(cameras), now, with_recon=recon)

    def upstream(self, R: int | None = None, data: CameraOptions | None = None) -> tuple[RenderOutput, Conditioning]:
        """A step's R renders (`data.batch_size` unless given), and the text that goes with their cameras."""
        out, cameras = self.render(R, data or self.config.data)
        self.meter.counts["renders"] += out.comp_rgb.shape[0]
        return out, self.view_text(cameras)

    def _render(self, R: int | None, data: CameraOptions) -> tuple[RenderOutput, Cameras]:
        cameras = sample_cameras(data, R, generator=self.generators["cameras"], step=self.step)
        rays, n, b = cameras.to(self.device).rays(data.height, data.width), len(cameras), self.config.system.background
        background = white_or_light(
            n, b.random_probability, b.random_min, b.random_tint, self.generators["background"]
        ).to(self.device)
        return self.renderer(rays, background, self.generators["samples"]), cameras

    def _apply(self, guided: GuidanceOutput, gradients: list[Tensor]) -> bool:
        """The optimizer's step, skipped where a gradient is not finite or the teacher gave no finite draw at all.

        In the second case the regularizers alone would dissolve the scene.
        """
        any_draw = bool(guided.estimate.finite.any())
        finite = any_draw and all(bool(torch.isfinite(g).all()) for g in gradients)
        if finite:
            self.optimizer.step()
        return finite

    def _losses(self, out: RenderOutput, guided: GuidanceOutput, lambdas: dict[str, float]) -> dict[str, Tensor]:
        """The losses whose lambda is not 0, unweighted."""
        losses = {"sds": guided.loss_sds}
        if guided.loss_sds_img is not None:
            losses["sds_img"] = guided.loss_sds_img
        if guided.loss_recon is not None:
            losses["recon"] = guided.loss_recon
        return losses | {name: make(self.field, out) for name, make in REGULARIZERS.items() if lambdas[name] != 0}

    def _lambdas(self, step: int) -> dict[str, float]:
        loss = vars(self.config.system.loss)
        return {
            name.removeprefix("lambda_"): value if isinstance(value, float) else annealed(value, step)
            for name, value in loss.items()
        }

    def orbit(self, n_views: int) -> Cameras:
        """`n_views` cameras around the object at the evaluation elevation, the first in front."""
        return orbit(n_views, options=self.config.data)

    def views(self, cameras: Cameras, height: int, width: int) -> Tensor:
        """Finished images (B, height, width, 3) in [0, 1] on white; no random number is used."""
        white = torch.ones(3, device=self.device)
        return self.renderer.render(cameras, height, width, white)[0]

    @property
    def _run(self) -> dict[str, Any]:
        """What distinguishes checkpoints of the same shapes."""
        return {"prompt": self.config.prompt, "seed": self.config.seed}

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to continue as if it had not stopped: tensors and primitives."""
        return {
            "run": self._run,
            "step": self.step,
            "progress": self.progress,
            "bad_steps": self.non_finite.count,
            "nfe": self.meter.nfe,
            "renders": self.meter.renders,
            "field": self.field.state_dict(),
            "renderer": _without_field(self.renderer.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "guidance": self.guidance.state_dict(),
            "signal": self.signal.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "rng": self.globals.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`; CarvError where it belongs to another configuration."""
        with state_fits("this configuration", state, self.state_dict()):
            for key, value in state.get("run", {}).items():  # older checkpoints have none
                if value != self._run.get(key, value):
                    raise CarvError(
                        f"the checkpoint is of a run with {key} {shown(value)}, and this one has "
                        f"{shown(self._run[key])}; restore its own, or begin a new run with another --out"
                    )
            self.field.load_state_dict(state["field"])
            self.renderer.load_state_dict(state["renderer"], strict=False)
            load_optimizer(self.optimizer, state["optimizer"])
            self.guidance.load_state_dict(state["guidance"])
            if "signal" in state:  # older checkpoints have none
                self.signal.load_state_dict(state["signal"])
            for name, generator in self.generators.items():
                generator.set_state(state["generators"][name].cpu())
            self.globals.load_state_dict(state["rng"])
            self.step, self.non_finite.count = state["step"], state["bad_steps"]
            self.progress = _share(state.get("progress"))  # older checkpoints have none
            self.meter.counts.update(nfe=state["nfe"], renders=state["renders"])


def _share(progress: float | None) -> float | None:
    """Itself; ValueError where it is no share of a run."""
    if progress is not None and not 0 <= progress <= 1:
        raise ValueError(f"its progress is {progress}, and a number from 0 to 1 is due")
    return progress


def _without_field(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if not k.startswith("field.")}
