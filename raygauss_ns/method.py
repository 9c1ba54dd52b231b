"""The method specification that nerfstudio finds through the entry point. Imports nothing slow or optional."""

from __future__ import annotations

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

import ns_support.checkpoints
import ns_support.quiet
import ns_support.video  # noqa: F401 - these three act on import
from ns_support.full_images import FullImagesConfig
from ns_support.schedulers import FloatExponentialDecayConfig
from raygauss_ns.config import RayGaussModelConfig

_STEPS = 30_000


def _optimizer(lr: float, lr_final: float | None = None) -> dict[str, object]:
    """Adam as published (eps 1e-15), exponentially decaying over the whole training when a final rate is given."""
    schedule = None if lr_final is None else FloatExponentialDecayConfig(lr_final=lr_final, max_steps=_STEPS)
    return {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": schedule}


raygauss = MethodSpecification(
    config=TrainerConfig(
        method_name="raygauss",
        max_num_iterations=_STEPS,
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=0,
        steps_per_save=1000,
        mixed_precision=False,
        machine=MachineConfig(device_type="cpu"),  # where the caster runs: it has no GPU back end yet
        pipeline=VanillaPipelineConfig(
            datamanager=FullImagesConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True), cache_images_type="uint8"
            ),
            model=RayGaussModelConfig(),
        ),
        optimizers={
            "means": _optimizer(1.6e-4, 1.6e-6),  # times the camera extent, see scale_means_learning_rate
            "scales": _optimizer(0.0115),
            "quats": _optimizer(1e-3),
            "densities": _optimizer(0.2, 0.03),
            "sh_base": _optimizer(1e-2, 1e-3),
            "sh_rest": _optimizer(2.5e-3, 2.6e-4),
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="RayGauss: volumetric ray casting of Gaussians, without a GPU.",
)
