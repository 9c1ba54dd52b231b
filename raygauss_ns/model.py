"""RayGauss as a nerfstudio model: the one place where nerfstudio meets the caster."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from ns_support.errors import UserError
from ns_support.export_rays import groups_of_directions, is_of_texels, texel_rays
from ns_support.metrics import LazyLPIPS, comparison_images, image_metrics
from ns_support.speed import StepTimer
from raygauss_ns.cameras import camera_rays, camera_view
from raygauss_ns.casting import CastSettings, Gaussians, cast
from raygauss_ns.cloud_ply import read_cloud
from raygauss_ns.color import colors_reference, view_colors
from raygauss_ns.config import BLENDER_BOX, RayGaussModelConfig, check_background, check_config
from raygauss_ns.density_control import DensityControl, DensitySchedule
from raygauss_ns.gaussians import GaussianCloud, StartPoints, random_points
from raygauss_ns.losses import isotropy_loss
from raygauss_ns.projection import View
from raygauss_ns.schedules import PAPER_STEPS, Draw, images_per_step, step_generator, stretched, unlocked_colors
from raygauss_ns.similarity import structural_similarity
from raygauss_ns.training import TrainingLoop


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
        box = self.scene_box.aabb.float()
        self.unit = float((box[1] - box[0]).max()) / BLENDER_BOX
        config = self.config
        self.cloud = self._initial_cloud(box)
        total_steps = config.schedule_steps or PAPER_STEPS
        self.register_buffer("_total_steps", torch.tensor(total_steps))
        schedule = density_schedule(config, total_steps)
        self.density_control = DensityControl(len(self.cloud), schedule, config.density_threshold)
        self.step, self.rays_per_step = 0, 0
        self.seed = torch.initial_seed()
        self.lpips = LazyLPIPS()

    def _initial_cloud(self, box: Tensor) -> GaussianCloud:
        """The Gaussians to start from: a file's, or new ones at points."""
        config = self.config
        # A trained scene is viewed from its checkpoint: what it once started from need not be there any more, and
        # `get_training_callbacks` says so if it is needed after all.
        if config.initial_ply is not None and config.initial_ply.is_file():
            half_step = 0.5 * config.step_size * self.unit
            cloud = read_cloud(config.initial_ply, self.unit, config.sh_degree, config.num_lobes, half_step)
            if not bool((cloud.params["densities"] > config.density_threshold).any()):
                raise UserError(
                    f"None of the {len(cloud)} Gaussians in {config.initial_ply} is denser than "
                    f"--pipeline.model.density-threshold {config.density_threshold}."
                )
            return cloud
        start, density, scale = self._start_points(box), config.initial_density, config.initial_scale
        return GaussianCloud(start, self.unit, density, scale, config.sh_degree, config.num_lobes)

    def _start_points(self, box: Tensor) -> StartPoints:
        if self._seed_points is None or self.config.random_init or len(self._seed_points[0]) == 0:
            return random_points(self.config.num_random, box, self.config.random_extent)
        positions, colors = self._seed_points
        return StartPoints(positions, colors / 255.0 if len(colors) == len(positions) else None)

    @property
    def cast_settings(self) -> CastSettings:
        """How rays are sampled, in the scene's own length."""
        return CastSettings(
            step=self.config.step_size * self.unit,
            density_threshold=self.config.density_threshold / self.unit,
            sample_offset=self.config.sample_offset,
            transmittance_threshold=self.config.transmittance_threshold,
            samples_per_slab=self.config.samples_per_slab,
        )

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
        if self.config.initial_ply is not None and not (self.config.initial_ply.is_file() or self.cloud.loaded):
            raise UserError(f"The PLY file {self.config.initial_ply} (--pipeline.model.initial-ply) does not exist.")
        check_background(self.config, getattr(pipeline.datamanager.train_dataparser_outputs, "alpha_color", None))
        cameras = pipeline.datamanager.train_dataset.cameras
        timer, loop = StepTimer(), TrainingLoop(self, optimizers, cameras, training_callback_attributes.trainer)
        return [timer.before(), *loop.callbacks(), timer.after()]

    def update_to_step(self, step: int) -> None:
        """Tell the model where training stands: it decides what of the colour counts."""
        self.step = step

    @property
    def total_steps(self) -> int:
        """Length of training that the schedules are stretched to; part of the checkpoint."""
        return int(self._total_steps)

    def stretch_schedules(self, total_steps: int) -> None:
        """Lay all schedules out over a training of so many steps."""
        self._total_steps.fill_(total_steps)
        self.density_control.schedule = density_schedule(self.config, total_steps)

    @property
    def images_per_step(self) -> int:
        """How many images the optimiser step at hand averages over."""
        start = stretched(self.config.accumulate_from, self.total_steps)
        return images_per_step(self.step, start, max(stretched(self.config.accumulate_images, self.total_steps), 1))

    def _watched(self, gaussians: Gaussians, view: View | None) -> Gaussians:
        """The same Gaussians, whose means report their gradient to density control once it is known."""
        if not torch.is_grad_enabled() or self.step > self.density_control.schedule.last:
            return gaussians
        watched = gaussians.means.view_as(gaussians.means)
        # Detached: a hook that holds the tensor it hangs on keeps both alive for ever.
        means, record, images = gaussians.means.detach(), self.density_control.record, self.images_per_step

        def report(gradient: Tensor) -> None:
            record(gradient, means, self.unit, view, images)

        watched.register_hook(report)
        return gaussians._replace(means=watched)

    # ---- rendering ------------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle | Cameras) -> dict[str, Tensor]:
        """Render a camera's image (in training, a random window of it) or any bundle of rays.

        Args:
            ray_bundle: one camera, or rays of any shape [*] and any mix of cameras.

        Returns:
            "rgb" [*, 3], "depth" [*, 1] (expected distance along the ray, scene units; the largest of the batch where a
            ray meets nothing), "accumulation" [*, 1], "background" [*, 3]; in training also "window" [4]: first row,
            first column, rows and columns of the window.
        """
        gaussians = self.cloud.gaussians()
        if isinstance(ray_bundle, RayBundle):
            return self._render(ray_bundle, self._watched(gaussians, None) if self.training else gaussians)
        camera = ray_bundle
        height, width = int(camera.height), int(camera.width)
        if not self.training:
            return self._render(camera_rays(camera, (0, 0, height, width)), gaussians)
        window = self._random_window(height, width)
        self.rays_per_step = window[2] * window[3]
        outputs = self._render(camera_rays(camera, window), self._watched(gaussians, camera_view(camera, window)))
        outputs["window"] = torch.tensor(window)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Render a camera's whole image, cropped to a box if one is given."""
        if obb_box is None:
            rays = camera_rays(camera, (0, 0, int(camera.height), int(camera.width)))
        else:
            rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        return self._render(rays.to(self.device), self.cloud.gaussians())

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Render [H, W] rays for nerfstudio's exporters: a camera's, or those of a mesh's texels.

        Each texel is seen from a place of its own, on which a Gaussian's colour depends: the rays are turned a little,
        so that there are few directions, and the colours follow the direction.
        """
        rays, gaussians = camera_ray_bundle.to(self.device), self.cloud.gaussians()
        if not is_of_texels(rays):
            return self._render(rays, gaussians)
        shape, flat = rays.origins.shape[:-1], texel_rays(rays, self.config.near_plane * self.unit).flatten()
        found: dict[str, Tensor] = {}
        for own, group in groups_of_directions(flat):
            for name, values in self._render(group, gaussians).items():
                found.setdefault(name, values.new_zeros(len(flat), values.shape[-1]))[own] = values
        return {name: values.view(*shape, -1) for name, values in found.items()}

    def _render(self, rays: RayBundle, gaussians: Gaussians) -> dict[str, Tensor]:
        shape = rays.origins.shape[:-1]
        origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        nears = torch.full_like(origins[:, 0], self.config.near_plane * self.unit)
        fars = torch.full_like(nears, torch.inf)
        if rays.nears is not None and rays.fars is not None:
            nears, fars = torch.maximum(nears, rays.nears.reshape(-1)), rays.fars.reshape(-1)
        image_width = shape[1] if len(shape) == 2 else 0
        rgb, transmittance, depth = self._cast(gaussians, origins, directions, nears, fars, image_width)
        accumulation = 1.0 - transmittance
        background = self._background().to(rgb).expand_as(rgb)
        depth = depth / accumulation.clamp_min(1e-6)
        seen = accumulation.detach() > 1e-3
        depth = torch.where(seen, depth, depth[seen].max() if bool(seen.any()) else 0.0)
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
        degree, lobes = unlocked_colors(self.step, interval, self.config.sh_degree)
        basis = self.cloud.color_basis().unlocked(degree, lobes)
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
        return torch.rand(3, generator=step_generator(self.seed, self.step, Draw.BACKGROUND))

    def _random_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        side = self.config.training_window
        if side is None:
            side = 0 if self.device.type == "cuda" else 256
        rows, columns = (min(side, height), min(side, width)) if side > 0 else (height, width)
        generator = step_generator(self.seed, self.step, Draw.WINDOW)
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
        """(1 - lambda) L1 + lambda (1 - SSIM), over the pixels that the mask keeps, and L_iso.

        Where the gradients of several images make one optimiser step, this image's share of the loss.
        """
        image, mask = self._ground_truth(outputs, batch)
        rgb = outputs["rgb"]
        if mask is not None:
            image, rgb = image * mask, rgb * mask
        similarity = structural_similarity(rgb, image)
        weight = self.config.ssim_lambda
        losses = {"main_loss": (1 - weight) * (rgb - image).abs().mean() + weight * (1 - similarity)}
        if self.config.iso_weight > 0:
            losses["isotropy_loss"] = self.config.iso_weight * isotropy_loss(self.cloud.params["scales"])
        return {name: loss / self.images_per_step for name, loss in losses.items()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and, where its weights are to be had, LPIPS; ground truth beside prediction beside error."""
        image, _ = self._ground_truth(outputs, batch)
        metrics = image_metrics(outputs["rgb"], image, self.lpips)
        metrics["gaussian_count"] = float(len(self.cloud))
        return metrics, comparison_images(outputs, image)


def density_schedule(config: RayGaussModelConfig, total_steps: int) -> DensitySchedule:
    """When Gaussians are cloned and split in a training of `total_steps`."""
    return DensitySchedule(
        first=stretched(config.densify_from, total_steps),
        last=stretched(config.densify_until, total_steps),
        every=max(stretched(config.densify_every, total_steps), min(config.densify_least, config.densify_every)),
        threshold=config.densify_threshold,
        max_gaussians=config.max_gaussians,
        distance_weighted=config.densify_by_distance,
    )
