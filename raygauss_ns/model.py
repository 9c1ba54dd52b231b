"""RayGauss as a nerfstudio model: the one place where nerfstudio meets the caster."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from ns_support.commands.export_rays import groups_of_directions, is_of_texels, texel_rays
from ns_support.commands.given_rays import given_rays
from ns_support.errors import UserError
from ns_support.lenses.lens import Lens
from ns_support.lenses.triangulation import cameras_inside
from ns_support.metrics import LazyLPIPS, comparison_images, image_metrics
from ns_support.rays import camera_rays
from ns_support.step_timer import StepTimer
from ns_support.viewer.controls import viewer_asks
from ns_support.viewer.outputs import Outputs, filled_depth
from raygauss_ns.cameras import camera_view, posed_lenses
from raygauss_ns.casting import CastSettings, Gaussians, cast
from raygauss_ns.color.api import view_colors
from raygauss_ns.color.reference import colors_reference
from raygauss_ns.config import PUBLISHED_STEP_SIZE, RayGaussModelConfig, check_background, check_config
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.densification import DensityControl
from raygauss_ns.gaussians.foreign_splats import tell_if_unseen
from raygauss_ns.gaussians.initialization import StartPoints, frustum_points, gap_points, random_points
from raygauss_ns.gaussians.ply_formats import read_cloud
from raygauss_ns.gaussians.projection import View
from raygauss_ns.gaussians.regularization import isotropy_loss
from raygauss_ns.gaussians.scene_scale import (
    BLENDER_DISTANCE,
    camera_centers,
    content_distance,
    resolved_step,
    scene_unit,
)
from raygauss_ns.gaussians.schedules import (
    PAPER_STEPS,
    Draw,
    active_colors,
    step_generator,
    steps_per_update,
    stretched,
)
from raygauss_ns.ssim.api import structural_similarity
from raygauss_ns.training import TrainingLoop, density_schedule
from raygauss_ns.viewing import FlatRays, RayGaussPictures, RayGaussRun, extra_pictures


class RayGaussModel(Model):
    """A sum of anisotropic Gaussians, marched through by every ray and trained end to end.

    Args:
        config: the configuration.
        seed_points: SfM points [N, 3] and their colours [N, 3] in 0..255, if the scene has any.
        kwargs: what nerfstudio hands to every model.
    """

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
        config = self.config
        box, points = self.scene_box.aabb.float(), None if self._seed_points is None else self._seed_points[0]
        # Of the training images; a model that is set up by hand, without a datamanager, may have none.
        cameras = (self.kwargs.get("metadata") or {}).get("train_cameras")
        poses, lenses = (torch.zeros(0, 3, 4), []) if cameras is None else posed_lenses(cameras, torch.device("cpu"))
        capture = cameras_inside(camera_centers(poses), box)
        self.iso_weight = (2.5e-4 if capture else 2.5e-7) if config.iso_weight is None else config.iso_weight
        distance = content_distance(poses, points) if len(poses) else None
        unit = config.scene_unit or scene_unit(box, distance if capture else None)
        step = config.step_size or resolved_step(lenses, unit, distance, PUBLISHED_STEP_SIZE)
        self.register_buffer("_resolved_step", torch.tensor(step, dtype=torch.float64))
        self._step_size = step
        self.cloud = self._initial_cloud(unit, box, poses, lenses, distance)
        total_steps = config.schedule_steps or PAPER_STEPS
        self.register_buffer("_total_steps", torch.tensor(total_steps))
        self._step_count = total_steps
        schedule = density_schedule(config, total_steps, "cpu")
        self.density_control = DensityControl(len(self.cloud), schedule, config.density_threshold)
        self.step, self.rays_per_step = 0, 0
        self.images_at_once, self.image = 1, 0
        self.seed = torch.initial_seed()
        self.lpips = LazyLPIPS()
        self.pictures = RayGaussPictures(box, self.unit, config.density_threshold, self.step_size)
        self.run = RayGaussRun(self.pictures)

    def _initial_cloud(
        self, unit: float, box: Tensor, poses: Tensor, lenses: list[Lens], distance: float | None
    ) -> GaussianCloud:
        """The Gaussians to start from: a file's, or new ones at points."""
        config = self.config
        # A trained scene is viewed from its checkpoint: what it once started from need not be there any more, and
        # `get_training_callbacks` says so if it is needed after all.
        follows = (self.kwargs.get("metadata") or {}).get("checkpoint_follows", False)
        if config.initial_ply is not None and config.initial_ply.is_file() and not follows:
            half_step = 0.5 * self.step_size * unit
            cloud = read_cloud(config.initial_ply, unit, config.sh_degree, config.num_lobes, half_step)
            tell_if_unseen(cloud.params["means"], poses, lenses, config.initial_ply)
            if not bool((cloud.params["densities"] > config.density_threshold).any()):
                raise UserError(
                    f"None of the {len(cloud)} Gaussians in {config.initial_ply} is denser than "
                    f"--pipeline.model.density-threshold {config.density_threshold}."
                )
            return cloud
        if self._seed_points is not None and not config.random_init and len(self._seed_points[0]) > 0:
            positions, colors = self._seed_points
            start = StartPoints(positions, colors / 255.0 if len(colors) == len(positions) else None)
            if config.gap_points > 0 and cameras_inside(camera_centers(poses), box):
                start = start.joined(gap_points(config.gap_points, start, poses, lenses))
        elif cameras_inside(camera_centers(poses), box):
            start = frustum_points(config.num_random, poses, lenses, distance or BLENDER_DISTANCE * unit)
        else:
            start = random_points(config.num_random, box, config.random_extent)
        return GaussianCloud(
            start, unit, config.initial_density, config.initial_scale, config.sh_degree, config.num_lobes
        )

    @property
    def unit(self) -> float:
        """u, the length that counts as 1 (scene units); part of the checkpoint."""
        return self.cloud.unit

    @property
    def step_size(self) -> float:
        """The configuration's dt (u) or, where that leaves it open, the one found at the start of training."""
        return self.config.step_size or self._step_size

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # nerfstudio comes here twice, the second time with what is left of the state without the model's part.
        if f"{prefix}_total_steps" in state_dict:
            # Kept as numbers too: to ask a GPU for them would make every step wait for it.
            self._step_count = int(state_dict[f"{prefix}_total_steps"])
            self._step_size = float(state_dict[f"{prefix}_resolved_step"])
            self.pictures.follow_checkpoint(float(state_dict[f"{prefix}cloud.scene_unit"]), self.step_size)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def cast_settings(self) -> CastSettings:
        """How rays are sampled, in the scene's own length."""
        configured = CastSettings(
            step=self.step_size * self.unit,
            density_threshold=self.config.density_threshold / self.unit,
            sample_offset=self.config.sample_offset,
            transmittance_threshold=self.config.transmittance_threshold,
            samples_per_slab=self.config.samples_per_slab,
            step_growth=self.config.step_growth,
            transmittance_exponent=self.config.transmittance_exponent,
            max_step=max(self.config.max_step, self.step_size) * self.unit if self.config.max_step > 0 else 0.0,
        )
        return self.pictures.settings(configured)

    # ---- training -------------------------------------------------------------------------------------------------

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """One group for each kind of parameter."""
        return {name: [parameter] for name, parameter in self.cloud.params.items()}

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
        timer, loop = StepTimer(), TrainingLoop(self, optimizers, cameras, trainer)
        return [timer.before(), *loop.callbacks(), timer.after()]

    def update_to_step(self, step: int) -> None:
        """Tell the model where training stands: it decides what of the colour counts."""
        self.step = step
        self.update_to_image(step * self.images_at_once)

    def update_to_image(self, image: int) -> None:
        """Tell the model which image of the whole training comes next: it decides what is drawn at random for it."""
        self.image = image

    @property
    def total_steps(self) -> int:
        """Length of training that the schedules are stretched to; part of the checkpoint."""
        return self._step_count

    def stretch_schedules(self, total_steps: int) -> None:
        """Lay all schedules out over a training of so many steps."""
        self._total_steps.fill_(total_steps)
        self._step_count = total_steps
        self.density_control.schedule = density_schedule(self.config, total_steps, self.device.type)

    @property
    def steps_per_update(self) -> int:
        """How many training steps the optimiser step at hand averages over."""
        start = stretched(self.config.accumulate_from, self.total_steps)
        images = stretched(self.config.accumulate_images, self.total_steps)
        return steps_per_update(self.step, start, max(round(images / self.images_at_once), 1))

    @property
    def images_per_update(self) -> int:
        """How many images the optimiser step at hand averages over, in all processes."""
        return self.steps_per_update * self.images_at_once

    def _watched(self, gaussians: Gaussians, view: View | None) -> Gaussians:
        """The same Gaussians, whose means report their gradient to density control once it is known."""
        if not torch.is_grad_enabled() or self.step > self.density_control.schedule.last:
            return gaussians
        watched = gaussians.means.view_as(gaussians.means)
        # Detached: a hook that holds the tensor it hangs on keeps both alive for ever.
        means, control, images = gaussians.means.detach(), self.density_control, self.images_per_update
        record = control.record if self.images_at_once == 1 else control.observe

        def report(gradient: Tensor) -> None:
            record(gradient, means, self.unit, view, images)

        watched.register_hook(report)
        return gaussians._replace(means=watched)

    # ---- rendering ------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> MutableMapping[str, Tensor]:
        """Render a camera's image (in training, a random window of it) or any bundle of rays.

        Args:
            ray_bundle: one camera, or rays of any shape [*] and any mix of cameras (`given_rays`).

        Returns:
            "rgb" [*, 3], "depth" [*, 1] (expected distance along the ray, scene units; the largest of the batch where a
            ray meets nothing), "accumulation" [*, 1], "background" [*, 3]; in training also "window" [4]: first row,
            first column, rows and columns of the window; otherwise also the `extra_pictures`, each computed when it is
            looked up.
        """
        gaussians = self.cloud.gaussians()
        if isinstance(ray_bundle, RayBundle):
            rays = given_rays(ray_bundle, self.device)
            if not self.training:
                return self._render_all(rays, gaussians)
            return self._render(rays, self._watched(gaussians, None))
        camera = ray_bundle
        height, width = int(camera.height), int(camera.width)
        if not self.training:
            return self._render_all(camera_rays(camera), gaussians)
        window = self._random_window(height, width)
        self.rays_per_step = window[2] * window[3]
        outputs = self._render(camera_rays(camera, window), self._watched(gaussians, camera_view(camera, window)))
        outputs["window"] = torch.tensor(window)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> MutableMapping[str, Tensor]:
        """Render a camera's whole image, cropped to a box if one is given; for the viewer as its controls stand."""

        def render() -> MutableMapping[str, Tensor]:
            rays = camera_rays(camera.to(self.device), obb_box=obb_box)
            gaussians = self.pictures.gaussians(self.cloud.gaussians())
            if not viewer_asks():
                return self._render_all(rays, gaussians)
            shown = self.run.shown()
            outputs = self.run.in_pieces(rays, lambda rows: self._render_all(rows, gaussians).only(shown))
            outputs["depth"] = filled_depth(outputs["depth"], outputs["accumulation"])
            return outputs

        return self.run.picture(camera, render)

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> MutableMapping[str, Tensor]:
        """Render [H, W] rays for nerfstudio's exporters: a camera's, or those of a mesh's texels.

        Each texel is seen from a place of its own, on which a Gaussian's colour depends: the rays are turned a little,
        so that there are few directions, and the colours follow the direction.
        """
        rays, gaussians = camera_ray_bundle.to(self.device), self.cloud.gaussians()
        if not is_of_texels(rays):
            return self._render_all(given_rays(rays, self.device), gaussians)
        shape, flat = rays.origins.shape[:-1], texel_rays(rays, self.config.near_plane * self.unit).flatten()
        found: dict[str, Tensor] = {}
        for own, group in groups_of_directions(flat):
            for name, values in self._render(group, gaussians).items():
                found.setdefault(name, values.new_zeros(len(flat), values.shape[-1]))[own] = values
        return {name: values.view(*shape, -1) for name, values in found.items()}

    def _render_all(self, rays: RayBundle, gaussians: Gaussians) -> Outputs:
        outputs, flat = self._render(rays, gaussians), self._flat(rays)
        # The viewer turns colours into bytes as they are: 1.01 would come out black.
        outputs["rgb"] = outputs["rgb"].clamp(0.0, 1.0)
        accumulation = outputs["accumulation"].reshape(-1)
        return Outputs(
            outputs, extra_pictures(gaussians, flat, self.cast_settings, self.pictures, accumulation, self.unit)
        )

    def _flat(self, rays: RayBundle) -> FlatRays:
        origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        nears = torch.full_like(origins[:, 0], self.config.near_plane * self.unit)
        fars = torch.full_like(nears, torch.inf)
        if rays.nears is not None and rays.fars is not None:
            nears, fars = torch.maximum(nears, rays.nears.reshape(-1)), rays.fars.reshape(-1)
        return FlatRays(origins, directions, nears, fars, tuple(rays.origins.shape[:-1]))

    def _render(self, rays: RayBundle, gaussians: Gaussians) -> dict[str, Tensor]:
        origins, directions, nears, fars, shape = flat = self._flat(rays)
        rgb, transmittance, depth = self._cast(gaussians, origins, directions, nears, fars, flat.image_width)
        accumulation = 1.0 - transmittance
        background = self._background().to(rgb).expand_as(rgb)
        ends = torch.where(fars > nears, fars, 0.0)
        depth = filled_depth(depth / accumulation.clamp_min(1e-6), accumulation, ends)
        return {
            "rgb": (rgb + transmittance[:, None] * background).view(*shape, 3),
            "depth": depth.view(*shape, 1),
            "accumulation": accumulation.view(*shape, 1),
            "background": background.view(*shape, 3),
        }

    def _cast(
        self, gaussians: Gaussians, origins: Tensor, directions: Tensor, nears: Tensor, fars: Tensor, image_width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cast rays [R], grouped by the point that they come from: a Gaussian's colour depends on it."""
        settings = self.cast_settings
        if len(origins) == 0 or bool((origins == origins[0]).all()):
            colors = self._colors(gaussians, origins[0] if len(origins) else origins.new_zeros(3))
            out = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=image_width)
            return out.rgb, out.transmittance, out.depth
        if bool((directions == directions[0]).all()):  # parallel rays: seen from infinitely far away
            colors = self._colors(gaussians, None, directions[0])
            out = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=image_width)
            return out.rgb, out.transmittance, out.depth
        centers, group = torch.unique(origins, dim=0, return_inverse=True)
        order = torch.argsort(group, stable=True)
        parts = []
        for center, members in zip(centers, order.split(torch.bincount(group).tolist()), strict=True):
            colors = self._colors(gaussians, center)
            rays = (origins[members], directions[members], nears[members], fars[members])
            parts.append(cast(gaussians, colors, *rays, settings))
        back = torch.argsort(order)
        rgb, transmittance, depth = (torch.cat(fields)[back] for fields in zip(*parts, strict=True))
        return rgb, transmittance, depth

    def _colors(self, gaussians: Gaussians, center: Tensor | None, direction: Tensor | None = None) -> Tensor:
        """Colours [N, 3] as seen from a point, or along one direction."""
        # What a file brings along counts from the start.
        interval = self.config.sh_degree_interval if self.config.initial_ply is None else 0
        interval = stretched(interval, self.total_steps)
        degree, lobes = active_colors(self.step, interval, self.config.sh_degree)
        basis = self.cloud.color_basis().active(degree, lobes)
        if center is None:
            assert direction is not None
            return colors_reference(basis, direction)
        alive = gaussians.densities.detach() > self.cast_settings.density_threshold
        return view_colors(basis, gaussians.means, center, alive)

    def _background(self) -> Tensor:
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            return renderers.BACKGROUND_COLOR_OVERRIDE
        if self.config.background_color != "random":
            return torch.full((3,), float(self.config.background_color == "white"))
        if not self.training:
            return torch.zeros(3)
        return torch.rand(3, generator=step_generator(self.seed, self.image, Draw.BACKGROUND))

    def _random_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        side = self.config.training_window
        if side is None:
            side = 0 if self.device.type == "cuda" else 256
        rows, columns = (min(side, height), min(side, width)) if side > 0 else (height, width)
        generator = step_generator(self.seed, self.image, Draw.WINDOW)
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        return top, left, rows, columns

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """[*, 4]: the colour without the background, in [0, 1], and the accumulation as alpha."""
        if output_name != "rgb":
            raise NotImplementedError(f'get_rgba_image needs output_name "rgb", got {output_name!r}')
        alpha = outputs["accumulation"]
        color = (outputs["rgb"] - (1.0 - alpha) * outputs["background"]) / alpha.clamp_min(1e-6)
        return torch.cat([torch.where(alpha > 0, color.clamp(0.0, 1.0), 0.0), alpha], dim=-1)

    # ---- loss and metrics -----------------------------------------------------------------------------------------

    def _ground_truth(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The batch's image [H, W, 3] over the background and its mask [H, W, 1], cut to the window if there is one."""
        image, mask = batch["image"].to(self.device), batch.get("mask")
        if "window" in outputs:
            top, left, height, width = outputs["window"].tolist()
            image = image[top : top + height, left : left + width]
            mask = None if mask is None else mask[top : top + height, left : left + width]
        if image.dtype == torch.uint8:
            image = image.float() / 255.0
        if image.shape[-1] == 4:
            image = image[..., :3] * image[..., 3:] + (1.0 - image[..., 3:]) * outputs["background"]
        return image, None if mask is None else mask.to(self.device)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the window (dB) and the number of Gaussians."""
        image, _ = self._ground_truth(outputs, batch)
        mse = torch.nn.functional.mse_loss(outputs["rgb"].detach().clamp(0.0, 1.0), image)
        return {"psnr": -10.0 * torch.log10(mse), "gaussian_count": torch.tensor(float(len(self.cloud)))}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """(1 - lambda) L1 + lambda (1 - SSIM), the mean over the pixels that the mask keeps, and L_iso.

        In training, where the gradients of several images make one optimiser step, this image's share of the loss.
        """
        image, mask = self._ground_truth(outputs, batch)
        rgb, kept = outputs["rgb"], torch.ones((), device=image.device)
        if mask is not None:
            image, rgb = image * mask, rgb * mask
            kept = mask.float().mean()
            kept = torch.where(kept > 0, kept, 1.0)
        similarity = structural_similarity(rgb, image)
        weight = self.config.ssim_lambda
        # Masked pixels are alike, and add nothing to the means over the image.
        losses = {"main_loss": ((1 - weight) * (rgb - image).abs().mean() + weight * (1 - similarity)) / kept}
        if self.iso_weight > 0:
            losses["isotropy_loss"] = self.iso_weight * isotropy_loss(self.cloud.tensors["scales"])
        images = self.images_per_update if self.training else 1
        return {name: loss / images for name, loss in losses.items()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and, where its weights are to be had, LPIPS; ground truth beside prediction beside error."""
        image, _ = self._ground_truth(outputs, batch)
        metrics = image_metrics(outputs["rgb"], image, self.lpips)
        metrics["gaussian_count"] = float(len(self.cloud))
        return metrics, comparison_images(outputs, image)
