"""RayGauss as a nerfstudio model: the one place where nerfstudio meets the caster."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from pytorch_msssim import SSIM
from torch import Tensor, nn

from ns_support.errors import UserError
from ns_support.metrics import LazyLPIPS, comparison_images, image_metrics
from raygauss_ns.casting import CastSettings, cast
from raygauss_ns.color import SH_DEGREE, sh_colors
from raygauss_ns.config import BLENDER_BOX, RayGaussModelConfig, check_config
from raygauss_ns.density_control import DensityControl, DensitySchedule, smallest_resolved_scale
from raygauss_ns.gaussians import GaussianCloud, StartPoints, random_points


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
        start = self._start_points(box)
        self.cloud = GaussianCloud(start, self.unit, self.config.initial_density, self.config.initial_scale)
        self.density_control = DensityControl(
            len(self.cloud),
            DensitySchedule(
                self.config.densify_from,
                self.config.densify_until,
                self.config.densify_every,
                self.config.densify_threshold,
                self.config.max_gaussians,
            ),
            self.config.density_threshold,
        )
        self._scale_floor = torch.zeros(0)
        self._window_share = 1.0
        self.step = 0
        self.ssim = SSIM(data_range=1.0, size_average=True, channel=3)
        self.lpips = LazyLPIPS()

    def _start_points(self, box: Tensor) -> StartPoints:
        if self._seed_points is None or self.config.random_init or len(self._seed_points[0]) == 0:
            return random_points(self.config.num_random, box)
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
        """Set the step before each iteration; keep the densities valid and the set of Gaussians clean after it."""
        optimizers = training_callback_attributes.optimizers
        pipeline = training_callback_attributes.pipeline
        if optimizers is None or pipeline is None:
            raise ValueError("get_training_callbacks needs the optimizers and the pipeline")
        cameras = pipeline.datamanager.train_dataset.cameras
        extent = camera_extent(cameras)
        scale_means_learning_rate(optimizers, extent)
        after = TrainingCallbackLocation.AFTER_TRAIN_ITERATION
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.update_to_step),
            TrainingCallback([after], self._keep_valid),
            TrainingCallback([after], self._control_density, args=[optimizers, extent]),
            TrainingCallback([after], self._limit_scales, args=[cameras]),
        ]

    def update_to_step(self, step: int) -> None:
        """Tell the model where training stands: it decides which degree of the colour is unlocked."""
        self.step = step

    @torch.no_grad()
    def _keep_valid(self, step: int) -> None:
        self.cloud.params["densities"].clamp_(min=0.0)

    def _control_density(self, optimizers: Optimizers, extent: float, step: int) -> None:
        params, control = self.cloud.params, self.density_control
        if step <= self.config.densify_until:
            control.record(params["means"].grad, self.unit * self._window_share)
        if step > 0 and step % self.config.prune_every == 0 and control.prune(params, optimizers.optimizers) == 0:
            raise UserError(
                f"No Gaussian is left at step {step}: all densities fell below {self.config.density_threshold}. "
                "Check the scene's poses and background colour, or lower --pipeline.model.density-threshold."
            )
        if control.is_due(step):
            control.multiply(params, optimizers.optimizers, extent)
        for name, parameter in params.items():
            optimizers.parameters[name] = [parameter]

    @torch.no_grad()
    def _limit_scales(self, cameras: Cameras, step: int) -> None:
        if not self.config.limit_scales:
            return
        scales = self.cloud.params["scales"]
        if len(self._scale_floor) != len(scales) or step % 100 == 0:
            self._scale_floor = smallest_resolved_scale(
                self.cloud.params["means"], *pinhole_cameras(cameras, scales.device)
            ).log()
        torch.maximum(scales, self._scale_floor[:, None], out=scales)

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
        if isinstance(ray_bundle, RayBundle):
            return self._render(ray_bundle)
        camera = ray_bundle
        image_height, image_width = int(camera.height), int(camera.width)
        if not self.training:
            return self._render(camera_rays(camera, (0, 0, image_height, image_width)))
        window = self._random_window(image_height, image_width)
        self._window_share = window[2] * window[3] / (image_height * image_width)
        outputs = self._render(camera_rays(camera, window))
        outputs["window"] = torch.tensor(window)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Render a camera's whole image, cropped to a box if one is given."""
        if obb_box is None:
            rays = camera_rays(camera, (0, 0, int(camera.height), int(camera.width)))
        else:
            rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        return self._render(rays.to(self.device))

    def _render(self, rays: RayBundle) -> dict[str, Tensor]:
        shape = rays.origins.shape[:-1]
        origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
        nears = torch.full_like(origins[:, 0], self.config.near_plane * self.unit)
        fars = torch.full_like(nears, torch.inf)
        if rays.nears is not None and rays.fars is not None:
            nears, fars = torch.maximum(nears, rays.nears.reshape(-1)), rays.fars.reshape(-1)
        rgb, transmittance, depth = self._cast(origins, directions, nears, fars, shape[1] if len(shape) == 2 else 0)
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
        self, origins: Tensor, directions: Tensor, nears: Tensor, fars: Tensor, image_width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cast rays [R], grouped by the point that they come from: a Gaussian's colour depends on it."""
        gaussians, settings = self.cloud.gaussians(), self.cast_settings
        if len(origins) == 0 or bool((origins == origins[0]).all()):
            colors = self._colors(gaussians.means, origins[0] if len(origins) else origins.new_zeros(3))
            out = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=image_width)
            return out.rgb, out.transmittance, out.depth
        if bool((directions == directions[0]).all()):  # parallel rays: seen from infinitely far away
            colors = self._colors(gaussians.means, None, directions[0])
            out = cast(gaussians, colors, origins, directions, nears, fars, settings, image_width=image_width)
            return out.rgb, out.transmittance, out.depth
        centers, group = torch.unique(origins, dim=0, return_inverse=True)
        order = torch.argsort(group, stable=True)
        parts = []
        for center, members in zip(centers, order.split(torch.bincount(group).tolist()), strict=True):
            colors = self._colors(gaussians.means, center)
            rays = (origins[members], directions[members], nears[members], fars[members])
            parts.append(cast(gaussians, colors, *rays, settings))
        back = torch.argsort(order)
        rgb, transmittance, depth = (torch.cat(fields)[back] for fields in zip(*parts, strict=True))
        return rgb, transmittance, depth

    def _colors(self, means: Tensor, center: Tensor | None, direction: Tensor | None = None) -> Tensor:
        """Colours [N, 3] as seen from a point, or along one direction."""
        interval = self.config.sh_degree_interval
        degree = min(self.config.sh_degree, self.step // interval if interval > 0 else SH_DEGREE)
        if center is not None:
            direction = torch.nn.functional.normalize(means - center, dim=-1)
        assert direction is not None
        return sh_colors(self.cloud.params["sh_base"], self.cloud.params["sh_rest"], direction, degree)

    def _background(self) -> Tensor:
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            return renderers.BACKGROUND_COLOR_OVERRIDE
        if self.config.background_color == "random":
            return torch.rand(3) if self.training else torch.zeros(3)
        return torch.full((3,), float(self.config.background_color == "white"))

    def _random_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        side = self.config.training_window
        if side is None:
            side = 0 if self.device.type == "cuda" else 256
        rows, columns = (min(side, height), min(side, width)) if side > 0 else (height, width)
        top = int(torch.randint(height - rows + 1, ()))
        left = int(torch.randint(width - columns + 1, ()))
        return top, left, rows, columns

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """[H, W, 4]: the colour without the background, and the accumulation as alpha."""
        if output_name != "rgb":
            raise NotImplementedError(f'get_rgba_image needs output_name "rgb", got {output_name!r}')
        alpha = outputs["accumulation"]
        color = (outputs["rgb"] - (1.0 - alpha) * outputs["background"]) / alpha.clamp_min(1e-6)
        return torch.cat([torch.where(alpha > 0, color, 0.0), alpha], dim=-1)

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
        """(1 - lambda) L1 + lambda (1 - SSIM), over the pixels that the mask keeps."""
        image, mask = self._ground_truth(outputs, batch)
        rgb = outputs["rgb"]
        if mask is not None:
            image, rgb = image * mask, rgb * mask
        similarity = self.ssim(rgb.permute(2, 0, 1)[None], image.permute(2, 0, 1)[None])
        weight = self.config.ssim_lambda
        return {"main_loss": (1 - weight) * (rgb - image).abs().mean() + weight * (1 - similarity)}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and, where its weights are to be had, LPIPS; ground truth beside prediction."""
        image, _ = self._ground_truth(outputs, batch)
        metrics = image_metrics(outputs["rgb"], image, self.lpips)
        metrics["gaussian_count"] = float(len(self.cloud))
        return metrics, comparison_images(outputs, image)


def camera_extent(cameras: Cameras) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean (scene units); 1 for a single camera."""
    centers = cameras.camera_to_worlds[..., :3, 3].reshape(-1, 3)
    extent = 1.1 * float(torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).max())
    return extent if extent > 0 else 1.0


def camera_rays(camera: Cameras, window: tuple[int, int, int, int]) -> RayBundle:
    """Rays through the centres of a window of a camera's pixels; [rows, columns] of them, without pixel areas.

    nerfstudio's `generate_rays` serves every kind of camera in one batch and took longer than the caster; for the usual
    one, a pinhole without distortion, the same directions are a few lines.

    Args:
        camera: one camera.
        window: first row, first column, rows, columns.
    """
    top, left, rows, columns = window
    distorted = camera.distortion_params is not None and bool(camera.distortion_params.any())
    if distorted or int(camera.camera_type) != CameraType.PERSPECTIVE.value:
        coords = camera.get_image_coords()[top : top + rows, left : left + columns].to(camera.device)
        return camera.generate_rays(camera_indices=0, coords=coords, keep_shape=True)
    pose = camera.camera_to_worlds.reshape(3, 4)
    x = (torch.arange(left, left + columns, device=pose.device) + 0.5 - camera.cx.item()) / camera.fx.item()
    y = (torch.arange(top, top + rows, device=pose.device) + 0.5 - camera.cy.item()) / camera.fy.item()
    local = torch.stack([x.expand(rows, -1), -y[:, None].expand(-1, columns), -torch.ones_like(x).expand(rows, -1)], -1)
    directions = torch.nn.functional.normalize(local @ pose[:, :3].T, dim=-1)
    return RayBundle(pose[:, 3].expand_as(directions), directions, torch.ones_like(directions[..., :1]))


def pinhole_cameras(cameras: Cameras, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `smallest_resolved_scale` wants to know of C cameras, lens distortion left aside.

    Returns:
        [C, 3, 4] world to camera, and [C, 6]: fx, fy, cx, cy, width, height.
    """
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4).to(device)
    rotations = poses[:, :, :3].transpose(1, 2)
    fields = (cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height)
    intrinsics = torch.cat([f.reshape(-1, 1).float() for f in fields], dim=1).to(device)
    return torch.cat([rotations, -rotations @ poses[:, :, 3:]], dim=2), intrinsics


def scale_means_learning_rate(optimizers: Optimizers, extent: float) -> None:
    """Make the learning rate of the means, and its schedule, relative to the camera extent.

    Computed from the configuration and not from the current value, so that calling it again, or after a resume, changes
    nothing.
    """
    learning_rate = optimizers.config["means"]["optimizer"].lr * extent
    scheduler = optimizers.schedulers.get("means")
    for group in optimizers.optimizers["means"].param_groups:
        group["initial_lr"] = learning_rate
        group["lr"] = learning_rate
    if scheduler is not None:
        scheduler.base_lrs = [learning_rate] * len(scheduler.base_lrs)
        for group, factor in zip(
            optimizers.optimizers["means"].param_groups,
            (schedule(scheduler.last_epoch) for schedule in scheduler.lr_lambdas),
            strict=True,
        ):
            group["lr"] = learning_rate * factor
