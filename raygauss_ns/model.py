"""RayGauss as a nerfstudio model: the one place where nerfstudio meets the caster."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from torch import Tensor, nn

from ns_support.commands.export_rays import by_direction, is_of_texels, texel_rays
from ns_support.commands.given_rays import given_rays
from ns_support.corrections.exposure import within_range
from ns_support.corrections.model import CorrectedModel
from ns_support.errors import UserError
from ns_support.metrics import LazyLPIPS, comparison_images, image_metrics
from ns_support.rays import camera_rays, lens_of
from ns_support.sampling import WindowMemory
from ns_support.step_timer import StepTimer
from ns_support.viewer.controls import viewer_asks
from ns_support.viewer.outputs import Outputs, filled_depth, without_background
from raygauss_ns.alignment import aligned_camera
from raygauss_ns.background import Background
from raygauss_ns.cameras import flat_rays, observed_view, posed_lenses
from raygauss_ns.casting import CastSettings, Gaussians, RayOutputs, Rays
from raygauss_ns.color import ColorBasis
from raygauss_ns.config import MOVING_RULE, RayGaussModelConfig, check_background, check_config
from raygauss_ns.gaussians.density.control import DensityControl
from raygauss_ns.gaussians.losses import isotropy_loss, photometric_loss
from raygauss_ns.gaussians.projection import View, pixel_angle, widened
from raygauss_ns.gaussians.renderer import over, render
from raygauss_ns.gaussians.schedules import (
    PAPER_STEPS,
    Draw,
    active_colors,
    downscales_at,
    step_generator,
    steps_per_update,
    stretched,
)
from raygauss_ns.scene import TrainingViews, initial_cloud, resolve_scale
from raygauss_ns.targets import ground_truth
from raygauss_ns.training import TrainingHooks, counted_pixels, density_schedule, drawn_window
from raygauss_ns.viewing import RayGaussPictures, RayGaussRun, extra_outputs


class Resolved(NamedTuple):
    """What was found out at the start of training and is part of the checkpoint, beside the cloud's unit.

    Attributes:
        step_size: dt (u), where the configuration leaves it open.
        total_steps: length of training that the schedules are stretched to.
        pixel_angle: size of the training images' pixels at distance 1; 0 if there were none.
    """

    step_size: float
    total_steps: int
    pixel_angle: float = 0.0


class RayGaussModel(CorrectedModel):
    """A sum of anisotropic Gaussians, marched through by every ray and trained end to end.

    Args:
        config: the configuration.
        seed_points: SfM points [N, 3] and their colours [N, 3] in 0..255, if the scene has any.
        kwargs: what nerfstudio hands to every model.
    """

    moving_rule = MOVING_RULE
    config: RayGaussModelConfig

    def __init__(
        self, config: RayGaussModelConfig, *args: Any, seed_points: tuple[Tensor, Tensor] | None = None, **kwargs: Any
    ) -> None:
        check_config(config)
        self._seed_points = seed_points
        super().__init__(config, *args, **kwargs)

    def populate_modules(self) -> None:
        """Create the Gaussians."""
        super().populate_modules()
        config, metadata = self.config, self.kwargs.get("metadata") or {}
        box, cameras = self.scene_box.aabb.float(), metadata.get("train_cameras")
        self.make_corrections(config, 0 if cameras is None else len(cameras), cameras)
        # A model that is set up by hand, without a datamanager, may have no training images.
        poses, lenses = (torch.zeros(0, 3, 4), []) if cameras is None else posed_lenses(cameras, torch.device("cpu"))
        views = TrainingViews(box, poses, lenses, self._seed_points)
        scale = resolve_scale(config, views)
        self.iso_weight = scale.iso_weight if config.iso_weight is None else config.iso_weight
        self.most_downscales = scale.downscales
        self._resolved = Resolved(scale.step_size, config.schedule_steps or PAPER_STEPS, scale.pixel_angle)
        self.cloud = initial_cloud(config, views, scale, metadata.get("checkpoint_follows", False))
        schedule = density_schedule(config, self.total_steps, "cpu")
        self.density_control = DensityControl(len(self.cloud), schedule, config.density_threshold)
        self.windows = WindowMemory(config.window_rule == "blocks", [(int(x.height), int(x.width)) for x in lenses])
        self.step, self.rays_per_step = 0, 0
        self.images_at_once, self.image = 1, 0
        self.seed = torch.initial_seed()
        self.lpips = LazyLPIPS()
        self.background = Background(config.background_color)
        self.pictures = RayGaussPictures(box, self.unit, config.density_threshold, self.step_size)
        self.run = RayGaussRun(self.pictures)
        self.look.join(self.run)

    @property
    def unit(self) -> float:
        """u, the scene scale (scene units); part of the checkpoint."""
        return self.cloud.unit

    @property
    def step_size(self) -> float:
        """The configuration's dt (u) or, where that leaves it open, the one found at the start of training."""
        return self.config.step_size or self._resolved.step_size

    @property
    def total_steps(self) -> int:
        """Length of training that the schedules are stretched to; part of the checkpoint."""
        return self._resolved.total_steps

    def get_extra_state(self) -> Tensor:
        """What `Resolved` holds, for the checkpoint."""
        # On the model's device: processes compare and broadcast whatever is in the state.
        return torch.tensor(self._resolved, dtype=torch.float64, device=self.device)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what a checkpoint says."""
        step_size, total_steps, *angle = state.tolist()
        # Version 0.1.0 had no angle: the cameras at hand are then taken for those of the training.
        self._resolved = Resolved(step_size, int(total_steps), *(angle or [self._resolved.pixel_angle]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old = [state_dict.pop(f"{prefix}{name}", None) for name in ("_resolved_step", "_total_steps")]
        if old[0] is not None and old[1] is not None:  # as version 0.1.0 stored them
            state_dict[f"{prefix}_extra_state"] = torch.stack([old[0].double(), old[1].double()])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state; the viewer's controls then start from what was trained with."""
        keys = super().load_state_dict(*args, **kwargs)
        self.density_control.check_number(len(self.cloud))
        self.pictures.follow_checkpoint(self.unit, self.step_size)
        return keys

    @property
    def downscales(self) -> int:
        """How often the sides of the training images are halved at the step at hand."""
        full_from = stretched(self.config.full_resolution_from, self.total_steps)
        return downscales_at(self.step, self.most_downscales, full_from)

    @property
    def cast_settings(self) -> CastSettings:
        """How rays are sampled, in the scene's own length."""
        return self.config.cast_settings(self.step_size, self.unit)

    # ---- training -------------------------------------------------------------------------------------------------

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """One group for each kind of parameter."""
        groups = {name: [parameter] for name, parameter in self.cloud.params.items()}
        return groups | self.background.get_param_groups() | self.correction_groups()

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Schedules before each step; valid densities, density control and bounds on the scales after it."""
        optimizers, pipeline = training_callback_attributes.optimizers, training_callback_attributes.pipeline
        if optimizers is None or pipeline is None:
            raise ValueError("get_training_callbacks needs the optimizers and the pipeline")
        trainer = training_callback_attributes.trainer
        if trainer is not None and (trainer.mixed_precision or trainer.use_grad_scaler):
            raise UserError(
                "--mixed-precision and --use-grad-scaler must be False for raygauss: rays in half precision miss their "
                "pixels, and scaled gradients would make every Gaussian multiply."
            )
        if self.config.initial_ply is not None and not (self.config.initial_ply.is_file() or self.cloud.loaded):
            raise UserError(f"The PLY file {self.config.initial_ply} (--pipeline.model.initial-ply) does not exist.")
        check_background(self.config, getattr(pipeline.datamanager.train_dataparser_outputs, "alpha_color", None))
        cameras = pipeline.datamanager.train_dataset.cameras
        timer, hooks = StepTimer(), TrainingHooks(self, optimizers, cameras, trainer)
        return [timer.before(), *hooks.callbacks(), timer.after()]

    def update_to_step(self, step: int) -> None:
        """Tell the model where training stands: it decides what of the colour counts."""
        self.step = step
        self.update_to_image(step * self.images_at_once)

    def update_to_image(self, image: int) -> None:
        """Tell the model which image of the whole training comes next: it decides what is drawn at random for it."""
        self.image = image

    def stretch_schedules(self, total_steps: int) -> None:
        """Lay all schedules out over a training of so many steps."""
        self._resolved = self._resolved._replace(total_steps=total_steps)
        self.density_control.schedule = density_schedule(self.config, total_steps, self.device.type)

    @property
    def steps_per_update(self) -> int:
        """How many training steps the optimiser step at hand averages over."""
        start = stretched(self.config.accumulate_from, self.total_steps)
        images = stretched(self.config.accumulate_images, self.total_steps)
        return steps_per_update(self.step, start, max(round(images / self.images_at_once), 1))

    def _watched(self, gaussians: Gaussians, view: View | None, weight: float = 1.0) -> Gaussians:
        """The same Gaussians, whose means report their gradient to density control once it is known."""
        if not torch.is_grad_enabled() or self.step > self.density_control.schedule.last:
            return gaussians
        watched = gaussians.means.view_as(gaussians.means)
        # Detached: a hook that holds the tensor it hangs on keeps both alive for ever.
        means, control = gaussians.means.detach(), self.density_control

        def report(gradient: Tensor) -> None:
            control.observe(gradient, means, self.unit, view, self.images_at_once, weight)

        watched.register_hook(report)
        return gaussians._replace(means=watched)

    # ---- rendering ------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> MutableMapping[str, Tensor]:
        """Render a camera's image (in training, a random window of it) or any bundle of rays.

        Args:
            ray_bundle: one camera, or rays of any shape [*] and any mix of cameras (`given_rays`).

        Returns:
            "rgb" [*, 3], "depth" [*, 1] (expected distance along the ray, scene units; the largest of the batch where a
            ray meets nothing, but 0 in training), "accumulation" [*, 1], "background" [*, 3]; in training also "window"
            [4] (first row, first column, rows, columns); otherwise also the `extra_outputs`, each computed when it is
            looked up. With `window_rule` "blocks", training also has "window_weight" [], the factor on the loss.
        """
        gaussians = self.cloud.gaussians()
        if isinstance(ray_bundle, RayBundle):
            rays = given_rays(ray_bundle, self.device)
            if not self.training:
                return self._render_all(rays, gaussians, self.cast_settings)
            return self.render(rays, self._watched(gaussians, None), self.cast_settings)
        if not self.training:
            camera = ray_bundle
            return self._render_all(camera_rays(camera), *self._as_seen_by(camera, gaussians, self.cast_settings))
        camera, motion = self.refined(ray_bundle)
        lens = lens_of(camera)
        # As coarse as the image.
        settings = self.config.cast_settings(self.step_size * (1 << self.downscales), self.unit)
        photo = (camera.metadata or {}).get("cam_idx")
        window, weight = drawn_window(self, lens, photo)
        self.rays_per_step = window[2] * window[3]
        by_distance = self.density_control.schedule.distance_weighted
        watched = self._watched(gaussians, observed_view(camera, window, by_distance), weight)
        rays = camera_rays(camera, window)
        outputs = self.render(rays, watched, settings, photo, motion, lens.has_one_center)
        changes = {} if motion is None else self.view_change(camera, rays, outputs)
        drawn = {"window_weight": torch.tensor(weight)} if self.windows.is_on else {}
        return outputs | changes | {"window": torch.tensor(window)} | drawn

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> MutableMapping[str, Tensor]:
        """Render a camera's whole image, cropped to a box if one is given; for the viewer as its controls stand.

        The controls change nothing else: whatever trains, evaluates or exports is handed the configuration's settings.
        """

        def render() -> MutableMapping[str, Tensor]:
            rays = camera_rays(camera.to(self.device), obb_box=obb_box)
            gaussians, settings = self.cloud.gaussians(), self.cast_settings
            if not viewer_asks():
                return self._render_all(rays, *self._as_seen_by(camera, gaussians, settings))
            gaussians, settings = self.pictures.gaussians(gaussians), self.pictures.settings(settings)
            gaussians, settings = self._as_seen_by(camera, gaussians, settings)
            shown = self.run.shown()
            outputs = self.run.in_pieces(rays, lambda rows: self._render_all(rows, gaussians, settings).only(shown))
            outputs["depth"] = filled_depth(outputs["depth"], outputs["accumulation"])
            return outputs

        return self.run.picture(camera, render)

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> MutableMapping[str, Tensor]:
        """Render [H, W] rays for nerfstudio's exporters: a camera's, or those of a mesh's texels.

        Each texel is seen from a place of its own, on which a Gaussian's colour depends: the rays are turned a little,
        so that there are few directions, and the colours follow the direction.
        """
        rays, gaussians, settings = camera_ray_bundle.to(self.device), self.cloud.gaussians(), self.cast_settings
        if not is_of_texels(rays):
            return self._render_all(given_rays(rays, self.device), gaussians, settings)
        texels = texel_rays(rays, self.config.near_plane * self.unit)
        return by_direction(texels, lambda group: self.render(group, gaussians, settings))

    def _as_seen_by(
        self, camera: Cameras, gaussians: Gaussians, settings: CastSettings
    ) -> tuple[Gaussians, CastSettings]:
        """The same for an image whose pixels are no larger than the training's; else wider Gaussians, longer steps."""
        pose, (lens,) = posed_lenses(camera, self.device)
        trained = self._resolved.pixel_angle
        coarser = pixel_angle(lens) / trained if trained > 0 else 1.0
        if not self.config.antialiased or coarser <= 1:
            return gaussians, settings
        gaussians = widened(gaussians, pose[0], lens, trained)
        return gaussians, settings._replace(step=settings.step * coarser, max_step=settings.max_step * coarser)

    def _render_all(self, bundle: RayBundle, gaussians: Gaussians, settings: CastSettings) -> Outputs:
        outputs, rays = self.render(bundle, gaussians, settings), self._flat(bundle)
        # The viewer turns colours into bytes as they are: 1.01 would come out black.
        outputs["rgb"] = outputs["rgb"].clamp(0.0, 1.0)
        return Outputs(outputs, extra_outputs(gaussians, rays, settings, self.pictures, outputs, self.unit))

    def render(
        self,
        bundle: RayBundle,
        gaussians: Gaussians,
        settings: CastSettings,
        photo: int | None = None,
        motion: Tensor | None = None,
        one_origin: bool = False,
    ) -> dict[str, Tensor]:
        """Render rays with the exposure of a photograph (None: the mean); differentiable in the camera's motion."""
        rays, shape = self._flat(bundle), bundle.origins.shape[:-1]
        rgb, transmittance, depth = render(
            gaussians, self._active_colors(), rays, settings, motion=motion, one_origin=one_origin
        )
        background = self.background(rays.directions, step_generator(self.seed, self.image, Draw.BACKGROUND))
        photo, lit = self.photo_shown() if photo is None else photo, self.background.belongs_to_photographs
        if self.exposure.acts and not lit:
            rgb = self.exposure(rgb, 1.0 - transmittance[:, None], photo)
        rgb, accumulation, depth = over(RayOutputs(rgb, transmittance, depth), background)
        if self.exposure.acts and lit:
            rgb = self.exposure(rgb, torch.ones_like(rgb[:, :1]), photo)
        if motion is not None or not self.training:  # else nobody looks at it
            depth = filled_depth(depth, accumulation, torch.where(rays.fars > rays.nears, rays.fars, 0.0))
        return {
            "rgb": rgb.view(*shape, 3),
            "depth": depth.view(*shape, 1),
            "accumulation": accumulation.view(*shape, 1),
            "background": background.view(*shape, 3),
        }

    def _flat(self, bundle: RayBundle) -> Rays:
        return flat_rays(bundle, self.config.near_plane * self.unit)

    def _active_colors(self) -> ColorBasis:
        """The part of the colours that counts at the step at hand."""
        # What a file brings along counts from the start.
        interval = self.config.sh_degree_interval if self.config.initial_ply is None else 0
        interval = stretched(interval, self.total_steps)
        return self.cloud.color_basis().active(*active_colors(self.step, interval, self.config.sh_degree))

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """[*, 4]: the colour without the background, in [0, 1], and the accumulation as alpha."""
        if output_name != "rgb":
            raise NotImplementedError(f'get_rgba_image needs output_name "rgb", got {output_name!r}')
        return without_background(outputs["rgb"], outputs["accumulation"], outputs["background"])

    def aligned(self, camera: Cameras, batch: dict[str, Any]) -> Cameras:
        """A held-out camera moved to where the trained scene fits its image best; nothing is trained."""
        return aligned_camera(self, camera, batch)

    # ---- loss and metrics -----------------------------------------------------------------------------------------

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the window (dB) and the number of Gaussians."""
        image, _ = ground_truth(outputs, batch, self.device)
        mse = torch.nn.functional.mse_loss(outputs["rgb"].detach().clamp(0.0, 1.0), image)
        own = {"psnr": -10.0 * torch.log10(mse), "gaussian_count": torch.tensor(float(len(self.cloud)))}
        return own | self.correction_metrics()

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """`photometric_loss` of the image, `isotropy_loss` with its weight, and the corrections' penalties."""
        image, mask = ground_truth(outputs, batch, self.device)
        mask, factor = counted_pixels(self, outputs, batch, image, mask) if self.training else (mask, 1.0)
        rgb = within_range(outputs["rgb"], image) if self.exposure.moves else outputs["rgb"]
        loss = photometric_loss(rgb, image, self.config.ssim_lambda, mask)
        losses = {"main_loss": loss * factor if self.windows.is_on or self.moving.is_on else loss}
        if self.iso_weight > 0:
            losses["isotropy_loss"] = isotropy_loss(self.cloud.tensors["scales"], self.iso_weight)
        if not self.training:
            return losses
        photo, changes = batch.get("image_idx"), outputs.get("view_change")
        weight = (1 - self.config.ssim_lambda) * factor
        curvature = self.correction_curvature(photo, rgb - image, mask, changes, weight)
        return losses | self.correction_losses(photo) | curvature

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and, where its weights are to be had, LPIPS; ground truth beside prediction beside error."""
        image, _ = ground_truth(outputs, batch, self.device)
        metrics = image_metrics(outputs["rgb"], image, self.lpips, self.exposure.corrects)
        metrics["gaussian_count"] = float(len(self.cloud))
        return metrics, comparison_images(outputs, image)
