"""instant-ngp-hardmine in nerfstudio.

It derives from nerfstudio's `Model` and not from its `NGPModel`, of which nothing could be kept: its field needs
tiny-cuda-nn, its sampler CUDA, its LPIPS a download. Options that both have bear the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import renderers
from torch import Tensor
from torch.nn import Parameter

from hardmine_ns.config import MOVING_RULE, HardMineModelConfig
from hardmine_ns.findings import RayFindings, weighted
from hardmine_ns.fixed_sizes import FixedSizes
from hardmine_ns.hash_encoding import check_backend
from hardmine_ns.marching import Composite, HardnessMap, OccupancyGrid, PackedSamples, march_rays, merge_thin
from hardmine_ns.mining import HardSampleMining
from hardmine_ns.optimizers import fit_learning_rates
from hardmine_ns.rendering.field import HashField, UnitCube, truncated_exp
from hardmine_ns.rendering.visibility import Rays, SampleCounts, Visible, groups_of_rays, render_visible, search
from hardmine_ns.streams import Draw, seed_step
from hardmine_ns.viewing import HardMineRun, OfRays, Scene, extra_outputs, in_pieces
from ns_support.commands.export_rays import is_of_texels, texel_rays
from ns_support.commands.given_rays import given_rays
from ns_support.concurrency.processes import Processes
from ns_support.corrections.exposure import within_range
from ns_support.corrections.model import CorrectedModel
from ns_support.corrections.poses import aligned
from ns_support.errors import UserError
from ns_support.metrics import LazyLPIPS, comparison_images, image_metrics
from ns_support.rays import camera_rays
from ns_support.step_timer import StepTimer
from ns_support.viewer.controls import SlicePlane, stop_if_unwanted, viewer_asks
from ns_support.viewer.outputs import Outputs, filled_depth, without_background

_SAMPLES_AT_ONCE = 1 << 19
"""Samples whose densities evaluation computes at once: bounds its memory to about 200 MB whatever the scene."""
_RAYS_AT_ONCE = 1 << 13
"""Rays that evaluation marches at once: before the visibility pass a ray has some hundreds of samples of 16 bytes."""
_RAYS_TO_ALIGN = 1 << 11
"""Pixels that each step of aligning a held-out camera compares."""
_APPEARANCE_DIM = 32
_UP = torch.tensor([[0.0, 0.0, 1.0]])
"""The direction of a ray that stands in where there is none, to know the outputs."""


class HardMineModel(CorrectedModel):
    """Instant-NGP on a CPU or on CUDA, backpropagating hard samples only."""

    moving_rule = MOVING_RULE
    config: HardMineModelConfig
    field: HashField
    grid: OccupancyGrid
    mining: HardSampleMining
    hardness_map: HardnessMap

    def populate_modules(self) -> None:
        """Build field, grid and mining.

        Raises:
            UserError: if a setting is out of its range.
        """
        super().populate_modules()
        c = self.config
        aabb = self.scene_box.aabb
        diagonal = float((aabb[1] - aabb[0]).norm())
        c.check()
        try:
            self.grid = OccupancyGrid(aabb, c.grid_resolution, c.grid_levels, blocks_first=c.grid_blocks_first)
            self.mining = c.make_mining(Processes.current())
            encoding = c.make_encoding()
            check_backend(c.hash_backend, self.kwargs.get("device", "cpu"))
        except (ValueError, ImportError) as error:
            raise UserError(f"This configuration can't be used: {error}.") from error
        self.hardness_map = HardnessMap(self.grid.num_cells if c.merge_by == "hardness" else 0)
        self.step_size = diagonal / c.steps_per_diagonal if c.render_step_size is None else c.render_step_size
        appearance = _APPEARANCE_DIM if c.use_appearance_embedding else 0
        self.field = HashField(encoding, c.hidden_dim, self.num_train_data, appearance)
        self.renderer_rgb = renderers.RGBRenderer(background_color=c.background_color)
        self.lpips = LazyLPIPS()
        self.sample_counts = SampleCounts()
        self.ray_findings: RayFindings | None = None
        self._samples_of_rays: Tensor | None = None
        self.seed = torch.initial_seed()
        # What a step's visibility pass evaluated, until the update of the grid takes it.
        self._observed: tuple[Tensor, Tensor] | Tensor | None = None
        self.steps_done = 0
        self.fixed = FixedSizes()
        self.plane = SlicePlane(aabb)
        self.run = HardMineRun(self.mining, self.plane)
        cameras = (self.kwargs.get("metadata") or {}).get("train_cameras")
        self.make_corrections(c, self.num_train_data, cameras)
        self.look.join(self.run)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The hash table's and the networks' parameters, and those of the corrections."""
        return {"fields": list(self.field.parameters())} | self.correction_groups()

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The occupancy grid's updates; fits the learning rates to the training's length.

        Raises:
            UserError: if the model can be looked at, but not trained, on its device.
        """
        self.config.check_training(self.device.type)
        trainer, optimizers = training_callback_attributes.trainer, training_callback_attributes.optimizers
        length = None
        if trainer is not None and optimizers is not None:
            length = fit_learning_rates(optimizers, trainer.config.max_num_iterations)
        timer = StepTimer()
        first = TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self._first_grid)
        # After a step and not before the next one: a checkpoint in between then has what the step has found.
        grid = TrainingCallback(
            [TrainingCallbackLocation.AFTER_TRAIN_ITERATION], lambda step: self.update_grid(step + 1)
        )
        return [timer.before(), first, *self.correction_callbacks(length), grid, timer.after()]

    def _first_grid(self, step: int) -> None:
        self.steps_done = step
        if step == 0:
            self.update_grid(step)

    def update_grid(self, step: int) -> None:
        """Take over what the step has found, and visit a bounded number of the grid's cells if it is time to.

        Args:
            step: number of steps that are done.
        """
        c, self.steps_done = self.config, step
        self.hardness_map.learn(self.grid, Processes.current())
        if not c.updates_grid(step):
            return
        seed_step(self.seed, step, Draw.GRID)
        self.grid.update(self._thickness, c.grid_cells_per_update, self._observed, Processes.current())
        self._observed = None

    def get_outputs(self, ray_bundle: RayBundle) -> MutableMapping[str, Tensor]:
        """Render rays; in training with a graph that holds the mined samples only.

        Args:
            ray_bundle: R rays; in evaluation of any shape [*] (`given_rays`).

        Returns:
            "rgb" [R, 3]; "accumulation" and "depth" [R, 1], the depth being the expected distance along the ray; in
            evaluation also the `extra_outputs`, each computed when it is looked up. Where no ray meets anything,
            "depth" is then where they end.
        """
        if self.training:
            bundle = given_rays(ray_bundle, self.device)
            if self.refinement is not None:
                bundle = self.refinement.corrected_rays(bundle)
            photos = None if bundle.camera_indices is None else bundle.camera_indices[:, 0]
            if self.fixed.serve(self, bundle.origins):
                rendered, self._observed, self._samples_of_rays = self.fixed.render(self, self._rays(bundle), bundle)
            else:
                rendered = self.render_training(*self._march(bundle))
            return self._outputs(rendered, photos)
        rays = given_rays(ray_bundle, self.device)
        shape, flat = rays.origins.shape[:-1], rays.reshape((-1,))
        some = flat if len(flat) > 0 else given_rays(RayBundle(flat.origins.new_zeros(1, 3), _UP, None), self.device)

        def everywhere(function: OfRays) -> dict[str, Tensor]:
            found = function(some)
            return {name: values[: len(flat)].reshape(*shape, values.shape[-1]) for name, values in found.items()}

        outputs = self._with_extras(everywhere)
        ends = self.bounds(flat)[1].reshape(*shape, 1)
        outputs["depth"] = filled_depth(outputs["depth"], outputs["accumulation"], ends)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> MutableMapping[str, Tensor]:
        """Render [H, W] rays, some at a time: a camera's, or those of the texels of a mesh that nerfstudio exports.

        For the viewer what it shows. Where a ray meets nothing, "depth" is the largest of the image: a ray of no length
        would not tell an exporter of meshes that the space before it is empty.
        """
        rays, most, device = camera_ray_bundle, self.config.eval_num_rays_per_chunk, self.device
        if is_of_texels(rays):
            rays = texel_rays(rays, self.config.near_plane)
        else:
            rays = given_rays(rays, rays.origins.device)
        outputs = self._with_extras(lambda function: in_pieces(rays, function, most, device))
        outputs["depth"] = filled_depth(outputs["depth"], outputs["accumulation"])
        return outputs.only(self.run.shown()) if viewer_asks() else outputs

    def _with_extras(self, everywhere: Callable[[OfRays], dict[str, Tensor]]) -> Outputs:
        outputs, run = everywhere(self._render), self.run
        fractions = (lambda: run.fractions) if run.has_training else None
        scene = Scene(self.bounds, self.found, self.densities, self.grid, self.step_size, self.plane, fractions)
        return Outputs(outputs, extra_outputs(scene, outputs["accumulation"], everywhere))

    def _render(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        pieces = [self._outputs(render_visible(self.field, found, rays)) for rays, found in self.found(ray_bundle)]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> MutableMapping[str, Tensor]:
        """Render a camera's whole image, cropped to a box if one is given."""
        return self.run.picture(
            camera, lambda: self.get_outputs_for_camera_ray_bundle(camera_rays(camera, obb_box=obb_box))
        )

    def found(self, ray_bundle: RayBundle) -> Iterator[tuple[Rays, Visible]]:
        """March rays for an image and find what is visible, in groups that bound memory.

        Yields:
            (the rays of a group, what is visible on them).
        """
        limits = self._visibility_limits()
        for first in range(0, len(ray_bundle), _RAYS_AT_ONCE):
            rays, samples = self._march(ray_bundle[first : first + _RAYS_AT_ONCE])
            for own, group in groups_of_rays(samples, _SAMPLES_AT_ONCE):
                stop_if_unwanted()
                yield rays[own], search(self.field, group, rays[own], self.to_unit, *limits)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """[*, 4]: the colour without the background, and the accumulation as alpha.

        nerfstudio's own takes every ray before a background of one colour for opaque.
        """
        if output_name != "rgb":
            raise NotImplementedError(f'get_rgba_image needs output_name "rgb", got {output_name!r}')
        return without_background(outputs["rgb"], outputs["accumulation"], self._background(outputs["rgb"]))

    def render_training(self, rays: Rays, samples: PackedSamples) -> Composite:
        """Composite rays with a graph that holds the mined samples only.

        Args:
            rays: R rays.
            samples: all their samples in occupied space.
        """
        limits, keep = self._visibility_limits(), self.field.encoding.can_resume
        visible = search(self.field, samples, rays, self.to_unit, *limits, keep_features=keep)
        assert visible.searched is not None
        assert visible.searched_rows is not None
        positions, densities = visible.searched
        self.sample_counts = SampleCounts(len(samples), len(positions), len(visible.samples))
        self._samples_of_rays = samples.offsets.diff()
        self._observed = positions, densities * self.step_size
        self.mining.observer = self.run.watcher(visible.unit_positions)
        of_rays = self.to_unit if rays.origins.requires_grad or rays.directions.requires_grad else None
        tell = self.hardness_map.watch(positions, visible.searched_rows, visible.samples, len(rays.origins))
        return render_visible(self.field, visible, rays, self.mining, of_rays, tell=tell)

    @property
    def to_unit(self) -> UnitCube:
        """Maps scene positions [n, 3] to the field's unit cube."""
        return UnitCube(self.grid.center, self.grid.half_extent, not self.config.disable_scene_contraction)

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of the batch in dB, its samples, and what mining did in the step before: b / B and tau."""
        image = self._laid_over(batch["image"].to(self.device))
        weights = self.fixed.weights(batch.get("ray_weights"), self.training)
        error = weighted((outputs["rgb"].detach() - image).square(), weights).mean()
        metrics = {"psnr": -10 * torch.log10(error.clamp(min=1e-10))}
        if self.training:
            counts, mined = self.sample_counts, self.mining.statistics
            metrics["num_samples_per_batch"] = torch.tensor(float(counts.visible))
            metrics["searched_per_visible"] = torch.tensor(counts.searched / max(counts.visible, 1))
            metrics["mining_fraction"] = torch.tensor(mined.fraction)
            metrics["mining_tau"] = torch.tensor(mined.tau)
        return metrics | self.correction_metrics()

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the colours, and the corrections' penalties."""
        predicted, image = outputs["rgb"], batch["image"].to(self.device)
        if self.config.background_color == "random":
            behind = {"pred_image": predicted, "pred_accumulation": outputs["accumulation"], "gt_image": image}
            predicted, image = self.renderer_rgb.blend_background_for_loss_computation(**behind)
        else:
            image = self._laid_over(image)
        if self.exposure.moves:
            predicted = within_range(predicted, image)
        squares = (predicted - image).square()
        if not self.training:
            return {"rgb_loss": squares.mean()}
        pixels = batch["indices"].to(self.device)
        squares = self.counting(pixels, squares)
        if self._samples_of_rays is not None:
            self.ray_findings = RayFindings(pixels, squares.detach().mean(-1), self._samples_of_rays)
        squares = weighted(squares, self.fixed.weights(batch.get("ray_weights"), self.training))
        return {"rgb_loss": squares.mean()} | self.correction_losses(pixels[:, 0]) | self.squared_error_terms(squares)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Scores and comparison images of one image: ground truth beside prediction beside error."""
        image = self._laid_over(batch["image"].to(self.device))
        metrics = image_metrics(outputs["rgb"], image, self.lpips, self.exposure.corrects)
        return metrics, comparison_images(outputs, image)

    def aligned(self, camera: Cameras, batch: dict[str, Any]) -> Cameras:
        """A held-out camera moved to where the trained scene fits its image best; nothing is trained."""
        image, mask = batch["image"].to(self.device), batch.get("mask")
        shown = torch.ones(image.shape[:2]) if mask is None else mask[..., 0].cpu()
        pixels = shown.nonzero()
        if len(pixels) == 0:
            return camera
        drawn = torch.randint(len(pixels), (_RAYS_TO_ALIGN,), generator=torch.Generator().manual_seed(0))
        rows, columns = pixels[drawn].unbind(1)
        wanted, everything = self._laid_over(image[rows, columns]), HardSampleMining("off")

        def loss(moved: Cameras, motion: Tensor) -> Tensor:
            flat = given_rays(camera_rays(moved)[rows, columns], self.device)
            shift, turn = motion[:3], motion[3:].expand_as(flat.origins)
            flat.origins = flat.origins + shift + torch.linalg.cross(turn, flat.origins)
            flat.directions = flat.directions + torch.linalg.cross(turn, flat.directions)
            rays, samples = self._march(flat)
            found = search(self.field, samples, rays, self.to_unit, *self._visibility_limits())
            outputs = self._outputs(render_visible(self.field, found, rays, everything, self.to_unit))
            return (outputs["rgb"] - wanted).square().mean()

        assert self.refinement is not None
        return aligned(camera, loss, self.refinement.unit)

    def bounds(self, ray_bundle: RayBundle) -> tuple[Tensor, Tensor]:
        """Distances [R] at which rays begin and end."""
        nears = torch.full_like(ray_bundle.origins[:, 0], self.config.near_plane)
        fars = torch.full_like(nears, self.config.far_plane)
        if ray_bundle.nears is not None and ray_bundle.fars is not None:  # the viewer's crop
            nears = torch.maximum(nears, ray_bundle.nears.reshape(-1))
            fars = torch.minimum(fars, ray_bundle.fars.reshape(-1))
        return nears, fars

    def _rays(self, ray_bundle: RayBundle) -> Rays:
        cameras = ray_bundle.camera_indices
        if not self.config.use_appearance_embedding:
            cameras = None
        elif cameras is None:  # of no image, as in evaluation, where the field takes the mean over all
            cameras = torch.zeros_like(ray_bundle.origins[:, :1], dtype=torch.long)
        images = None if cameras is None else cameras.reshape(-1)
        return Rays(ray_bundle.origins.contiguous(), ray_bundle.directions.contiguous(), images)

    def _march(self, ray_bundle: RayBundle) -> tuple[Rays, PackedSamples]:
        """Rays and their samples in the occupied part of the grid, jittered in training."""
        c, rays, (nears, fars) = self.config, self._rays(ray_bundle), self.bounds(ray_bundle)
        origins, directions = rays.origins.detach(), rays.directions.detach()
        jitter = torch.rand_like(nears) if self.training else None
        steps = {"step_size": self.step_size, "cone_angle": c.cone_angle}
        samples = march_rays(origins, directions, nears, fars, self.grid, **steps, jitter=jitter)
        if self.training:
            given, known = (samples, origins, directions, self.grid, self.step_size), self.hardness_map.known
            samples = merge_thin(*given, limit=c.merge_thickness, most=c.merge_most, hardness=known)
        return rays, samples

    def _outputs(self, composite: Composite, photos: Tensor | int | None = None) -> dict[str, Tensor]:
        """Colours with the exposure of photographs (None: the mean) before the background, depth, accumulation."""
        accumulation = composite.accumulation[:, None]
        photos = self.photo_shown() if photos is None else photos
        rgb = self.exposure(composite.color, accumulation, photos)
        rgb = rgb + self._background(rgb) * (1 - accumulation)
        if not self.training:
            rgb = rgb.nan_to_num().clamp(0, 1)
        depth = composite.distance[:, None] / accumulation.clamp(min=1e-6)
        return {"rgb": rgb, "accumulation": accumulation, "depth": depth}

    def _background(self, rgb: Tensor) -> Tensor:
        """What lies behind colours [*, 3]; black where the background is random."""
        background: str | Tensor = self.config.background_color
        if renderers.BACKGROUND_COLOR_OVERRIDE is not None:
            background = renderers.BACKGROUND_COLOR_OVERRIDE
        if isinstance(background, str):  # made where it is needed: for a copy to a GPU, the host would wait
            return torch.full_like(rgb, float(background == "white"))
        return background.to(rgb).expand_as(rgb)

    def _laid_over(self, image: Tensor) -> Tensor:
        """An image [*, 3 or 4] over the background."""
        if image.shape[-1] < 4:
            return image
        rgb, opacity = image[..., :3], image[..., 3:]
        return rgb * opacity + self._background(rgb) * (1 - opacity)

    def densities(self, positions: Tensor) -> Tensor:
        """Density [n] at points [n, 3] of the scene."""
        log_density = self.field.geometry(self.to_unit(positions))[:, 0]
        return truncated_exp(log_density.float())

    def _thickness(self, positions: Tensor) -> Tensor:
        return self.densities(positions) * self.step_size

    def _visibility_limits(self) -> tuple[float, float]:
        """Least transmittance and least opacity of a visible sample."""
        alpha = self.config.alpha_thre
        return self.config.early_stop_eps, min(alpha, self.grid.mean_thickness) if alpha > 0 else 0.0
