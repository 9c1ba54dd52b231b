"""The methods that nerfstudio finds through this distribution's entry points."""

from __future__ import annotations

from typing import Any

from nerfstudio.configs.base_config import LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

import ns_support.startup  # noqa: F401 - acts on import
from hardmine_ns.config import HardMineModelConfig
from hardmine_ns.data import RayDataManagerConfig
from hardmine_ns.optimizers import FullLengthDecayConfig, RowAdamOptimizerConfig
from hardmine_ns.pipeline import CPU_STEPS, GPU_STEPS, AdaptiveRaysPipelineConfig
from ns_support.auto_data import AutoDataParserConfig
from ns_support.commands.loading import LOCAL_HOST
from ns_support.corrections.newton import CORRECTION_OPTIMIZERS
from ns_support.startup.device import default_device_type
from ns_support.trainer import SharedTrainerConfig

_ON_CPU = default_device_type() == "cpu"
# What a CPU affords. On lego_200 in the same 40 s of one core, merging thin samples gave 1.1 dB, a table that fits the
# cache another 2.6 dB (`benchmarks/mining.py`). Neither was measured on a GPU.
_SIZES: dict[str, Any] = {"steps_per_diagonal": 1000}
if _ON_CPU:
    _SIZES = {"steps_per_diagonal": 500, "merge_most": 8, "grid_blocks_first": True}
    _SIZES |= {"log2_hashmap_size": 17, "num_levels": 12, "max_res": 512}


_CPU_SAMPLES = {"photographs": 1 << 14, "objects": 1 << 15}
"""Visible samples of a step without a GPU: what scored best after one and two minutes with mining, on fox_270 and on
lego_200. Without mining, which makes a sample dearer, 2^14 is better for both (docs/results.md)."""
_CORRECTION_RATES = 0.02, 5e-4
"""Part of the way that poses and colours go at the first and the last step, each of which sees few pixels."""


def _correction(group: str) -> dict[str, Any]:
    """Optimiser of a group that is there if poses or exposures are corrected."""
    return {
        "optimizer": CORRECTION_OPTIMIZERS[group](lr=_CORRECTION_RATES[0]),
        "scheduler": FullLengthDecayConfig(lr_final=_CORRECTION_RATES[1]),
    }


def _trainer(
    name: str, datamanager: RayDataManagerConfig, model: HardMineModelConfig, cpu_samples: int
) -> SharedTrainerConfig:
    return SharedTrainerConfig(
        method_name=name,
        steps_per_eval_batch=500,
        steps_per_eval_image=500,
        steps_per_save=2000,
        max_num_iterations=CPU_STEPS if _ON_CPU else GPU_STEPS,
        mixed_precision=False,
        machine=MachineConfig(device_type=default_device_type()),
        pipeline=AdaptiveRaysPipelineConfig(
            datamanager=datamanager,
            model=model,
            target_num_samples=cpu_samples if _ON_CPU else 1 << 18,
            ray_rule="blocks" if _ON_CPU else "uniform",
        ),
        optimizers={
            "fields": {
                "optimizer": RowAdamOptimizerConfig(),
                "scheduler": FullLengthDecayConfig(lr_final=1e-3),
            },
            "camera_opt": _correction("camera_opt"),
            "exposure": _correction("exposure"),
        },
        logging=LoggingConfig(profiler="none"),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 12, websocket_host=LOCAL_HOST),
        vis="viewer",
    )


instant_ngp_hardmine = MethodSpecification(
    config=_trainer(
        "instant-ngp-hardmine",
        RayDataManagerConfig(dataparser=AutoDataParserConfig()),
        HardMineModelConfig(**_SIZES, exposure="auto"),
        _CPU_SAMPLES["photographs"],
    ),
    description="Instant-NGP that learns from hard samples only: photographs, unbounded scenes; on a CPU or a GPU.",
)
"""Four nested grids, contraction, growing steps."""

instant_ngp_hardmine_bounded = MethodSpecification(
    config=_trainer(
        "instant-ngp-hardmine-bounded",
        RayDataManagerConfig(dataparser=AutoDataParserConfig()),
        HardMineModelConfig(
            **_SIZES,
            grid_levels=1,
            alpha_thre=0.0,
            cone_angle=0.0,
            disable_scene_contraction=True,
            near_plane=0.01,
            background_color="white",
        ),
        _CPU_SAMPLES["objects"],
    ),
    description="Instant-NGP that learns from hard samples only: objects and synthetic scenes; on a CPU or a GPU.",
)
"""One grid over the scene box, steps of one length, white background."""
