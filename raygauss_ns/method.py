"""The method specifications that nerfstudio finds through the entry points. Imports nothing slow or optional.

`raygauss` is the default: the better of both papers wherever a measurement showed one, and learning rates for trainings
of some thousand steps. The others are the papers as published, as far as training goes: 30,000 steps, their learning
rates, their density control and their sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

import ns_support.startup  # noqa: F401 - acts on import
from ns_support.auto_data import AutoDataParserConfig
from ns_support.commands.loading import LOCAL_HOST
from ns_support.corrections.newton import CORRECTION_OPTIMIZERS
from ns_support.full_images import FullImagesConfig
from ns_support.schedulers import FloatExponentialDecayConfig
from ns_support.startup.device import default_device_type
from ns_support.trainer import SharedTrainerConfig
from raygauss_ns.config import PUBLISHED_STEP_SIZE, FusedAdamConfig, RayGaussModelConfig
from raygauss_ns.gaussians.losses import ISO_WEIGHT_REAL, ISO_WEIGHT_SYNTHETIC
from raygauss_ns.gaussians.schedules import (
    BACKGROUND_RATE,
    CORRECTION_RATES,
    CPU_STEPS,
    DEFAULT_RATES,
    PAPER_STEPS,
    REAL_RATES,
    SYNTHETIC_RATES,
    Rates,
)
from raygauss_ns.pipeline import RayGaussPipelineConfig


def _optimizer(rates: tuple[float, ...], kind: Callable[..., OptimizerConfig] = FusedAdamConfig) -> dict[str, object]:
    """Of a learning rate and, if it decays, the one at the end."""
    decays = len(rates) > 1
    schedule = FloatExponentialDecayConfig(lr_final=rates[-1], max_steps=PAPER_STEPS) if decays else None
    return {"optimizer": kind(lr=rates[0]), "scheduler": schedule}


def _method(
    name: str, model: RayGaussModelConfig, rates: Rates, description: str, steps: int = PAPER_STEPS
) -> MethodSpecification:
    corrections = {"background": _optimizer(BACKGROUND_RATE)} | {
        kind: _optimizer(rate, CORRECTION_OPTIMIZERS[kind]) for kind, rate in CORRECTION_RATES.items()
    }
    config = SharedTrainerConfig(
        method_name=name,
        max_num_iterations=steps,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=0,
        steps_per_save=1000,
        mixed_precision=False,
        machine=MachineConfig(device_type=default_device_type()),
        pipeline=RayGaussPipelineConfig(
            datamanager=FullImagesConfig(
                dataparser=AutoDataParserConfig(),
                cache_images_type="uint8",
            ),
            model=model,
        ),
        optimizers={kind: _optimizer(rate) for kind, rate in rates.items()} | corrections,
        logging=LoggingConfig(profiler="none"),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host=LOCAL_HOST),
        vis="viewer",
    )
    return MethodSpecification(config=config, description=description)


def _raygaussx(iso_weight: float) -> RayGaussModelConfig:
    return RayGaussModelConfig(
        step_size=PUBLISHED_STEP_SIZE,
        num_random=1_000_000,
        gap_points=0,
        random_extent=2.6 / 3,  # +-1.3 in a scene box of +-1.5
        initial_density=1.0,
        initial_scale=1.0,
        samples_per_slab=32,
        iso_weight=iso_weight,
        densify_every=500,
        densify_threshold=1.5e-4,
        densify_by_distance=True,
        max_gaussians=6_000_000,
        training_window=0,
        num_downscales=0,
        strategy="published",
        densify_until=15_000,
    )


raygauss = _method(
    "raygauss",
    RayGaussModelConfig(exposure="auto"),
    DEFAULT_RATES,
    "RayGauss: Gaussians, ray-marched and not splatted. The better quality of the two; on a CPU or a GPU.",
    PAPER_STEPS if default_device_type() == "cuda" else CPU_STEPS,
)

raygauss_2408_03356 = _method(
    "raygauss-2408-03356",
    RayGaussModelConfig(
        step_size=PUBLISHED_STEP_SIZE,
        num_random=1000,
        gap_points=0,
        initial_density=10.0,
        initial_scale=1.0,
        sample_offset=0.0,
        samples_per_slab=8,
        transmittance_threshold=0.003,
        iso_weight=0.0,
        accumulate_images=1,
        densify_every=300,
        densify_threshold=4e-5,
        max_gaussians=6_000_000,
        training_window=0,
        num_downscales=0,
        strategy="published",
        densify_until=15_000,
    ),
    SYNTHETIC_RATES,
    "RayGauss trained as published (arXiv 2408.03356); for a GPU.",
)

raygaussx_2509_07782 = _method(
    "raygaussx-2509-07782",
    _raygaussx(ISO_WEIGHT_SYNTHETIC),
    SYNTHETIC_RATES,
    "RayGaussX trained as published on synthetic scenes (arXiv 2509.07782); for a GPU.",
)

raygaussx_2509_07782_real = _method(
    "raygaussx-2509-07782-real",
    replace(
        _raygaussx(ISO_WEIGHT_REAL),
        step_size=0.005,
        step_growth=1 / 1024,
        transmittance_exponent=1 / 3,
        max_step=4 * 0.005,
    ),
    REAL_RATES,
    "RayGaussX trained as published on real scenes (arXiv 2509.07782); for a GPU.",
)
