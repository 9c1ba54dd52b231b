"""Everything about the model that a user can set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
import tyro
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.models.base_model import ModelConfig

from ns_support.adam import SharedAdam
from ns_support.corrections.moving import MovingRule
from ns_support.corrections.settings import CorrectionsConfig
from ns_support.errors import UserError, require
from ns_support.help import documented
from raygauss_ns.background import BackgroundColor
from raygauss_ns.casting import CastSettings
from raygauss_ns.color.harmonics import SH_DEGREE

PUBLISHED_STEP_SIZE = 0.0025
"""dt of both papers (u)."""
Strategy: TypeAlias = Literal["relocation", "published"]
"""Density control."""
WindowRule: TypeAlias = Literal["uniform", "blocks"]
"""Which windows are trained."""
MOVING_RULE = MovingRule(start=0.4, outlier=5.0, own=2.0)
"""What moved stands out late, when everything else fits well, and fine detail has large errors long before."""
CPU_WINDOW = 128
"""Side of the window that a training step on a CPU sees (pixels)."""
CPU_GAUSSIANS, GPU_GAUSSIANS, PUBLISHED_GAUSSIANS = 100_000, 1_000_000, 6_000_000
"""Number of Gaussians that a training never exceeds unless told otherwise; the last is RayGaussX's, of which few scenes
need a part, while relocation always reaches its number."""


def _model_class() -> type:
    # Late: the model's module needs this one.
    from raygauss_ns.model import RayGaussModel

    return RayGaussModel


@documented
@dataclass
class FusedAdamConfig(AdamOptimizerConfig):
    """Adam in one pass over memory instead of ten; on a GPU, that of all parameters at once."""

    eps: float = 1e-15
    """Added to the root of the second moment, >= 0."""

    def setup(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser; not fused before torch 2.4, where a CPU has no such kernel."""
        fused = True if torch.__version__ >= "2.4" else None  # compares as a version: it is a TorchVersion, no string
        return SharedAdam(params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused)


@documented
@dataclass
class RayGaussModelConfig(CorrectionsConfig, ModelConfig):
    """RayGauss: volumetric ray casting of Gaussians.

    Lengths are in units of u (`scene_unit`). On Blender scenes u = 1 and the values are the papers'; elsewhere they
    follow the size of the scene. Steps "of 30,000" are those of a training of that length; they stretch with
    schedule_steps.
    """

    _target: type = field(default_factory=_model_class)
    """Class to instantiate."""
    enable_collider: tyro.conf.Suppress[bool] = False
    """Not used: rays begin at near_plane and end where the Gaussians do."""
    collider_params: tyro.conf.Suppress[dict[str, float] | None] = None
    """Not used."""
    loss_coefficients: tyro.conf.Suppress[dict[str, float]] = field(default_factory=dict)
    """Not used: `ssim_lambda` and `iso_weight` weight the losses."""
    eval_num_rays_per_chunk: tyro.conf.Suppress[int] = 4096
    """Not used: the caster bounds its memory itself."""
    prompt: tyro.conf.Suppress[str | None] = None
    """Not used."""
    scene_unit: float | None = None
    """Scene scale u > 0 (scene units); all lengths below are multiples of it. None: estimated as a third of the scene
    box's longest side if the cameras are outside the box, otherwise as a quarter of the median distance from a camera
    to what it looks at. Saved in the checkpoint."""
    step_size: float | None = None
    """dt > 0: distance between samples along a ray (u). None: half the size of a pixel at the scene's content, but at
    least the papers' 0.0025; estimated at the start of training and saved in the checkpoint. Halving it multiplies the
    training time by about 1.5."""
    step_growth: float = 0.0
    """g >= 0: growth of the step with the distance t along a ray, dt = max(step_size, g t), computed for each slab (no
    unit). For scenes that extend far; 0: a uniform step. RayGaussX on real scenes: 1/1024."""
    transmittance_exponent: float = 0.0
    """gamma, in [0, 1]: dt grows with T^-gamma as a ray's transmittance T falls; 0: not at all. RayGaussX on real
    scenes: 1/3."""
    max_step: float = 0.0
    """dt_max: what a growing step never exceeds (u), >= step_size, or 0 for no such bound. RayGaussX on real scenes:
    4 step_size."""
    density_threshold: float = 0.1
    """eps > 0: density cutoff (1/u): a Gaussian is culled where it is less dense. Larger is faster and coarser."""
    sample_offset: float = 0.5
    """Position of a sample within its step, in [0, 1): 0 the near end (RayGauss), 0.5 the midpoint (RayGaussX)."""
    transmittance_threshold: float = 1e-3
    """eps_T: a ray stops once its transmittance T is no greater, in [0, 1)."""
    samples_per_slab: int = 128
    """K >= 1: samples processed together. Affects only speed, unless the step grows: then these samples share one step
    (K is rounded up to a multiple of 16). RayGaussX: 32."""
    near_plane: float = 0.05
    """Distance from the camera at which rays begin (u), >= 0."""
    initial_ply: Path | None = None
    """PLY file with the Gaussians to start from, instead of SfM or random points: one of `raygauss-export raygauss`, or
    one of 3D Gaussian splatting (`raygauss-export splat`, `ns-export gaussian-splat`), whose opacities are converted to
    densities. Positions are in nerfstudio's scene coordinates, as those commands write them. All colour coefficients
    are active from the start."""
    num_random: int = 30_000
    """Initial Gaussians in a scene without SfM points, >= 1: uniform in the scene box, or along the cameras' rays if
    the cameras are inside it."""
    random_init: bool = False
    """Start at random positions even when the scene comes with SfM points."""
    gap_points: int = 20_000
    """Maximum number of Gaussians, >= 0, added to a capture's SfM points where its images show no point. 0: none."""
    random_extent: float = 1.0
    """Side of the box that random positions fill, centred in the scene box and given in its sides, > 0."""
    initial_density: float = 3.0
    """Initial peak density sigma of each Gaussian (1/u), > density_threshold."""
    initial_scale: float = 0.5
    """Initial scale of each Gaussian, in root mean squared distances to its three nearest neighbours, > 0. The papers
    use 1, which starts as an opaque fog: a few hundred steps pass before light reaches the object."""
    sh_degree: int = SH_DEGREE
    """Highest degree of the colour's spherical harmonics: 0 (no view dependence), 1 or 2."""
    num_lobes: int = 7
    """Spherical Gaussians in the colour of each Gaussian, >= 0; 0: harmonics only."""
    sh_degree_interval: int = 1000
    """Training steps (of 30,000) after which the next degree of spherical harmonics becomes active, >= 0; the spherical
    Gaussians follow after three such intervals. 0: all are active from the start."""
    ssim_lambda: float = 0.2
    """lambda: weight of 1 - SSIM in the loss, in [0, 1]; L1 has the rest."""
    iso_weight: float | None = None
    """Weight of L_iso, which penalises Gaussians more elongated than r = 10, >= 0. None: RayGaussX's, 2.5e-4 on real
    scenes (cameras inside the scene box) and 2.5e-7 on synthetic ones. RayGauss: 0."""
    accumulate_from: int = 20_000
    """Training step (of 30,000), >= 0, from which gradients are accumulated over several images."""
    accumulate_images: int = 20
    """Gradient accumulation: images averaged per optimiser step in a training of 30,000 steps, >= 1; in proportion in
    trainings of other lengths, so that the number of optimiser steps stays the same. 1: no accumulation."""
    schedule_steps: int = 0
    """Length of training that all schedules, learning rates included, are stretched to (steps), >= 0. 0: the
    max_num_iterations of the run, and for a resumed run those of the run it resumes."""
    background_color: BackgroundColor = "white"
    """Colour behind the scene, over which images with an alpha channel are composited. "random" is a new colour each
    training step and black elsewhere; it needs images with alpha (Blender: --alpha-color None). "learned" is a colour
    for each direction, for captures that show the sky."""
    training_window: int | None = None
    """Side of the random square crop that each training step uses (pixels), >= 11; 0: the whole image. None: the whole
    image on a GPU, 128 on a CPU."""
    window_rule: WindowRule = "uniform"
    """Which crops are trained. blocks: more of those where the image is still wrong, weighted such that the gradient
    stays that of all crops; uniform: all alike. No difference where steps use whole images."""
    num_downscales: int | None = None
    """Coarse to fine: how often the sides of the training images are halved at the start of training, >= 0; the step,
    the minimum scale of a Gaussian and the windows follow. 0: images are always used as they are. None: as often as
    leaves the shorter side 100 pixels."""
    full_resolution_from: int = 18_000
    """Training step (of 30,000) from which images are used as they are, >= 0; the smaller sizes share the steps before
    it equally."""
    strategy: Strategy = "relocation"
    """Density control. "relocation": the number of Gaussians grows steadily to max_gaussians, and those that show
    nothing are moved to where the image is worst, as in 3DGS-MCMC. "published": Gaussians are cloned and split wherever
    their gradient exceeds densify_threshold, as in both papers."""
    grow_until: int = 15_000
    """Training step (of 30,000) at which relocation reaches max_gaussians, >= 0."""
    densify_from: int = 500
    """Training step (of 30,000) at which density control begins, >= 0."""
    densify_until: int = 25_000
    """Training step (of 30,000) after which density control ends, >= 0; 0: none. The papers: 15,000."""
    densify_every: int = 300
    """Training steps (of 30,000) between two rounds of density control, >= 1; never fewer than densify_least."""
    densify_least: int = 50
    """Minimum number of steps between two rounds, not stretched, >= 1: the statistic needs to see some images."""
    densify_threshold: float = 4e-5
    """Mean of |dL/dmu| (1/u) above which the published strategy clones or splits a Gaussian, > 0. Lower gives more
    Gaussians."""
    densify_by_distance: bool = False
    """Multiply |dL/dmu| by max(1, distance to the camera / u), as RayGaussX does."""
    max_gaussians: int | None = None
    """Maximum number of Gaussians, >= 1; relocation reaches it, unless that is more than two for each pixel of a
    training image at its present size. None: 100,000 on a CPU, where more would take hours; on a GPU 1,000,000 or, with
    the published strategy, RayGaussX's 6,000,000."""
    prune_every: int = 100
    """Training steps between two prunings of low-density Gaussians (below density_threshold), >= 1."""
    reorder_every: int = 500
    """Training steps between two sorts of the Gaussians along a Z-order (Morton) curve, >= 0, as in RayGaussX. 0:
    never. Neighbours in space become neighbours in memory; the image stays the same."""
    antialiased: bool = True
    """Render images whose pixels are larger than the training's, such as small ones, with Gaussians widened by as much.
    Without it, what is smaller than a pixel flickers."""
    limit_scales: bool = True
    """Keep every scale above half the size of a pixel in the training camera that resolves the Gaussian best."""

    def check(self) -> None:
        """Refuse settings that can't be trained or rendered with; raises a `UserError` (`check_config`)."""
        check_config(self)

    def window_side(self, device_type: str) -> int:
        """Side of the crops on a kind of device ("cuda", "cpu"), in pixels; 0: whole images."""
        if self.training_window is not None:
            return self.training_window
        return 0 if device_type == "cuda" else CPU_WINDOW

    def cast_settings(self, step_size: float, unit: float) -> CastSettings:
        """How rays are sampled, in the scene's own length.

        Args:
            step_size: dt (u).
            unit: u (scene units).
        """
        return CastSettings(
            step=step_size * unit,
            density_threshold=self.density_threshold / unit,
            sample_offset=self.sample_offset,
            transmittance_threshold=self.transmittance_threshold,
            samples_per_slab=self.samples_per_slab,
            step_growth=self.step_growth,
            transmittance_exponent=self.transmittance_exponent,
            max_step=max(self.max_step, step_size) * unit if self.max_step > 0 else 0.0,
        )


def check_background(config: RayGaussModelConfig, alpha_color: torch.Tensor | None) -> None:
    """Refuse to train before one background on images that the data parser has laid over another.

    Args:
        config: the model's configuration.
        alpha_color: [3] what the data parser lays images with an alpha channel over; None: nothing.

    Raises:
        UserError: names both colours and the option that makes them one.
    """
    background = {"white": 1.0, "black": 0.0}.get(config.background_color)
    if alpha_color is None or (background is not None and bool((alpha_color == background).all())):
        return
    wanted = "None" if background is None else config.background_color
    raise UserError(
        f"The data parser lays the images over the colour {[round(c, 3) for c in alpha_color.tolist()]}, "
        f"but --pipeline.model.background-color is {config.background_color}. "
        f"Give --alpha-color {wanted} after the parser's name, or another background colour."
    )


def check_config(config: RayGaussModelConfig) -> None:
    """Refuse settings that can't be trained or rendered with.

    Raises:
        UserError: names the field, its value and what it must be.
    """
    checks: list[tuple[str, bool, str]] = [
        ("scene_unit", config.scene_unit is None or config.scene_unit > 0, "positive"),
        ("step_size", config.step_size is None or config.step_size > 0, "positive"),
        ("step_growth", 0 <= config.step_growth < math.inf, "finite and at least 0"),
        ("transmittance_exponent", 0 <= config.transmittance_exponent <= 1, "in [0, 1]"),
        ("max_step", config.max_step == 0 or config.max_step >= (config.step_size or 0), "0 or at least step_size"),
        ("density_threshold", config.density_threshold > 0, "positive"),
        ("sample_offset", 0 <= config.sample_offset < 1, "in [0, 1)"),
        ("transmittance_threshold", 0 <= config.transmittance_threshold < 1, "in [0, 1)"),
        ("samples_per_slab", config.samples_per_slab >= 1, "at least 1"),
        ("near_plane", config.near_plane >= 0, "at least 0"),
        ("num_random", config.num_random >= 1, "at least 1"),
        ("gap_points", config.gap_points >= 0, "at least 0"),
        ("random_extent", config.random_extent > 0, "positive"),
        ("initial_density", config.initial_density > config.density_threshold, "greater than density_threshold"),
        ("initial_scale", config.initial_scale > 0, "positive"),
        ("sh_degree", 0 <= config.sh_degree <= SH_DEGREE, f"0 to {SH_DEGREE}"),
        ("num_lobes", config.num_lobes >= 0, "at least 0"),
        ("sh_degree_interval", config.sh_degree_interval >= 0, "at least 0"),
        ("ssim_lambda", 0 <= config.ssim_lambda <= 1, "in [0, 1]"),
        ("iso_weight", config.iso_weight is None or config.iso_weight >= 0, "at least 0"),
        ("accumulate_from", config.accumulate_from >= 0, "at least 0"),
        ("accumulate_images", config.accumulate_images >= 1, "at least 1"),
        ("schedule_steps", config.schedule_steps >= 0, "at least 0"),
        ("training_window", config.training_window in (None, 0) or (config.training_window or 0) >= 11, "0 or >= 11"),
        ("window_rule", config.window_rule in get_args(WindowRule), f"one of {', '.join(get_args(WindowRule))}"),
        ("num_downscales", config.num_downscales is None or config.num_downscales >= 0, "at least 0"),
        ("full_resolution_from", config.full_resolution_from >= 0, "at least 0"),
        ("strategy", config.strategy in get_args(Strategy), f"one of {', '.join(get_args(Strategy))}"),
        ("grow_until", config.grow_until >= 0, "at least 0"),
        ("densify_from", config.densify_from >= 0, "at least 0"),
        ("densify_until", config.densify_until >= 0, "at least 0"),
        ("densify_every", config.densify_every >= 1, "at least 1"),
        ("densify_least", config.densify_least >= 1, "at least 1"),
        ("densify_threshold", config.densify_threshold > 0, "positive"),
        ("max_gaussians", config.max_gaussians is None or config.max_gaussians >= 1, "at least 1"),
        ("prune_every", config.prune_every >= 1, "at least 1"),
        ("reorder_every", config.reorder_every >= 0, "at least 0"),
        (
            "background_color",
            config.background_color in get_args(BackgroundColor),
            f"one of {', '.join(get_args(BackgroundColor))}",
        ),
    ]
    for name, holds, wanted in checks:
        require(f"--pipeline.model.{name.replace('_', '-')}", holds, wanted, getattr(config, name))
    config.check_corrections()
