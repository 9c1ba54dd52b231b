"""What the settings of instant-ngp-hardmine may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ns_support.errors import require

if TYPE_CHECKING:
    from hardmine_ns.model import HardMineModelConfig

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
)
"""Settings that must be at least 1."""


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
    demand("near_plane", c.near_plane >= 0, "at least 0")
    demand("far_plane", c.far_plane > c.near_plane, f"more than near-plane, {c.near_plane}")
