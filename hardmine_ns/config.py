"""Everything about the model that a user can set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro
from nerfstudio.models.base_model import ModelConfig

from hardmine_ns.hash_encoding import Backend, HashEncoding
from hardmine_ns.mining import HardSampleMining, MiningHeads, MiningRule
from ns_support.concurrency.processes import Processes
from ns_support.corrections.moving import MovingRule
from ns_support.corrections.settings import CorrectionsConfig
from ns_support.errors import require
from ns_support.help import documented

MOVING_RULE = MovingRule(start=0.1, outlier=2.0, own=1.3)
"""Earlier than with Gaussians, and by smaller multiples: errors are larger and more alike (docs/corrections.md)."""
_COUNTS = (
    "eval_num_rays_per_chunk",
    "num_levels",
    "features_per_level",
    "base_res",
    "hidden_dim",
    "grid_resolution",
    "grid_update_every",
    "grid_cells_per_update",
    "steps_per_diagonal",
    "merge_most",
)
"""Settings that must be at least 1."""


def _model_class() -> type:
    # Late: the model's module needs this one.
    from hardmine_ns.model import HardMineModel

    return HardMineModel


@documented
@dataclass
class HardMineModelConfig(CorrectionsConfig, ModelConfig):
    """Settings of instant-ngp-hardmine."""

    _target: type = field(default_factory=_model_class)
    """Class to instantiate."""
    enable_collider: tyro.conf.Suppress[bool] = False
    """Not used: the occupancy grid's box bounds the rays."""
    collider_params: tyro.conf.Suppress[dict[str, float] | None] = None
    """Not used."""
    loss_coefficients: tyro.conf.Suppress[dict[str, float]] = field(default_factory=dict)
    """Not used: there is one loss."""
    prompt: tyro.conf.Suppress[str | None] = None
    """Not used."""
    eval_num_rays_per_chunk: int = 8192
    """Rays rendered at a time in evaluation and in the viewer, >= 1. Above 8192 only the memory of the images
    themselves grows: samples are marched and evaluated in groups of bounded size."""

    mining_rule: MiningRule = "poisson"
    """Which samples are backpropagated. poisson: each with a probability proportional to its hardness, weighted by its
    inverse (unbiased); systematic: the same, spread evenly along the rays (unbiased); multinomial: drawn in proportion
    to hardness, not weighted (the published rule); topk: the hardest; off: all of them."""
    mining_heads: MiningHeads = "together"
    """Whether samples are drawn by the hardness of density and colour together, or for each of the two separately, so
    that neither's gradient rules the other's draw; as many in all. separate: with the rules poisson and systematic."""
    mining_min_fraction: float = 0.05
    """Least fraction b / B of the visible samples to backpropagate, in (0, 1]."""
    mining_max_fraction: float = 0.5
    """Greatest fraction b / B of the visible samples to backpropagate, from mining_min_fraction to 1."""
    mining_decay: float = 0.9
    """Decay per step of the running mean of tau, which sets b = B / tau; in [0, 1)."""

    num_levels: int = 16
    """Levels L of the hash encoding, >= 1."""
    features_per_level: int = 2
    """Features F per level and vertex, >= 1."""
    log2_hashmap_size: int = 19
    """Base-2 logarithm of the number T of rows that a level has at most, 3 to 30."""
    base_res: int = 16
    """Vertices per axis of the coarsest level, N_min, >= 1."""
    max_res: int = 2048
    """Vertices per axis of the finest level, N_max, >= base_res."""
    hidden_dim: int = 64
    """Units in each hidden layer of the networks, > 0."""
    hash_backend: Backend = "auto"
    """What evaluates the hash encoding. auto: cpu or gpu, by the device; cpu: Numba, on a CPU; gpu: Triton, on CUDA;
    reference: PyTorch, on either, slow; tcnn: tiny-cuda-nn, on CUDA, if installed."""

    grid_resolution: int = 128
    """Voxels of the occupancy grid along an edge, >= 1; with grid_levels > 1 a multiple of 4."""
    grid_levels: int = 4
    """Nested boxes of the occupancy grid, each twice the size of the one before, 1 to 8."""
    grid_update_every: int = 16
    """Steps between updates of the occupancy grid, > 0."""
    grid_warmup_steps: int = 256
    """Steps, >= 0, during which updates are four times as frequent."""
    grid_cells_per_update: int = 1 << 15
    """Cells whose density an update looks up, > 0: the bound of what it costs. Cells on the training rays come free."""
    grid_blocks_first: bool = False
    """Whether, until all cells were visited once, a cell of the occupancy grid stands for its neighbours in a block of
    2 x 2 x 2 that were not: empty space is then known sooner. Without a GPU: yes."""

    alpha_thre: float = 0.01
    """Opacity of a sample below which it is dropped, in [0, 1); never more than the grid's mean."""
    early_stop_eps: float = 1e-4
    """Transmittance below which the rest of a ray is dropped, in [0, 1)."""
    cone_angle: float = 0.004
    """Growth of the step with distance, >= 0: 0 for bounded scenes, 1/256 for real ones."""
    render_step_size: float | None = None
    """Smallest distance between samples in scene units, > 0; unset: the scene box's diagonal / steps_per_diagonal."""
    steps_per_diagonal: int = 1000
    """Smallest steps that fit the scene box's diagonal, > 0. Used while render_step_size is unset."""
    merge_by: Literal["thickness", "hardness"] = "thickness"
    """By what neighbouring samples of a training ray become one. thickness: while the occupancy grid knows of little;
    hardness: more of them the less is still to be learnt where they lie; with merge_most > 1, and not on a GPU."""
    merge_thickness: float = 0.04
    """Optical thickness up to which neighbouring samples of a training ray become one, > 0: where the occupancy grid
    knows of little, a ray takes longer steps. Images are rendered with all of their samples. Unused with hardness."""
    merge_most: int = 1
    """Samples that become one at most, >= 1; 1: none do. Without a GPU: 8."""
    near_plane: float = 0.05
    """Distance in scene units at which rays start, >= 0."""
    far_plane: float = 1e3
    """Distance in scene units at which rays end, > near_plane."""
    use_appearance_embedding: bool = False
    """Whether each training image has an appearance of its own; evaluation uses their mean."""
    background_color: Literal["random", "black", "white"] = "random"
    """Colour behind the scene. random: a new one for each ray in training, black elsewhere."""
    disable_scene_contraction: bool = False
    """Whether space outside the scene box is left out instead of contracted into the field's cube."""

    @property
    def sizes_of_checkpoints(self) -> tuple[str, ...]:
        """Settings that the sizes of a checkpoint's tensors depend on (`ns_support.runs.sizes`)."""
        return "num_levels", "features_per_level", "log2_hashmap_size", "base_res", "max_res", "hidden_dim"

    def make_encoding(self) -> HashEncoding:
        """The hash encoding.

        Raises:
            ValueError: a setting is out of its range.
            ImportError: the back end is tiny-cuda-nn, which cannot be imported.
        """
        return HashEncoding(
            num_levels=self.num_levels,
            features_per_level=self.features_per_level,
            log2_hashmap_size=self.log2_hashmap_size,
            base_resolution=self.base_res,
            max_resolution=self.max_res,
            backend=self.hash_backend,
        )

    def make_mining(self, processes: Processes) -> HardSampleMining:
        """The mining of samples.

        Args:
            processes: whose samples make one batch.

        Raises:
            ValueError: a setting is out of its range, or does not fit another.
        """
        fractions = self.mining_min_fraction, self.mining_max_fraction
        return HardSampleMining(self.mining_rule, *fractions, self.mining_decay, processes, self.mining_heads)

    def updates_grid(self, step: int) -> bool:
        """Whether the occupancy grid is updated once so many steps are done."""
        warming_up = step < self.grid_warmup_steps
        return step % max(self.grid_update_every // (4 if warming_up else 1), 1) == 0

    def check_training(self, device: str) -> None:
        """Refuse to train where a setting has no effect.

        Args:
            device: "cpu" or "cuda".

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        by_thickness = device == "cpu" or self.merge_by == "thickness"
        require("--pipeline.model.merge-by", by_thickness, "thickness unless a CPU trains", self.merge_by)

    def check(self) -> None:
        """Refuse settings that can't be trained or rendered with.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        check_settings(self)


def check_settings(config: HardMineModelConfig) -> None:
    """Refuse a setting out of its range, by its name on the command line.

    Raises:
        UserError: names the setting, its range and its value.
    """
    c = config

    def demand(name: str, holds: bool, wanted: str) -> None:
        require(f"--pipeline.model.{name.replace('_', '-')}", holds, wanted, getattr(c, name))

    for name in _COUNTS:
        demand(name, getattr(c, name) >= 1, "at least 1")
    demand("grid_warmup_steps", c.grid_warmup_steps >= 0, "at least 0")
    demand("log2_hashmap_size", 3 <= c.log2_hashmap_size <= 30, "3 to 30")
    demand("max_res", c.max_res >= c.base_res, f"at least base-res, {c.base_res}")
    demand("grid_levels", 1 <= c.grid_levels <= 8, "1 to 8")
    nests = c.grid_levels == 1 or c.grid_resolution % 4 == 0
    demand("grid_resolution", nests, "a multiple of 4 with several grid-levels")
    for name in ("alpha_thre", "early_stop_eps"):
        demand(name, 0 <= getattr(c, name) < 1, "in [0, 1)")
    demand("cone_angle", c.cone_angle >= 0, "at least 0")
    demand("render_step_size", c.render_step_size is None or c.render_step_size > 0, "more than 0")
    demand("merge_thickness", c.merge_thickness > 0, "more than 0")
    demand("merge_by", c.merge_by in ("thickness", "hardness"), "thickness or hardness")
    demand("merge_by", c.merge_by == "thickness" or c.merge_most > 1, "thickness with merge-most 1")
    demand("near_plane", c.near_plane >= 0, "at least 0")
    demand("far_plane", c.far_plane > c.near_plane, f"more than near-plane, {c.near_plane}")
    c.check_corrections()
