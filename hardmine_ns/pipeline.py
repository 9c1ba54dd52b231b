"""A pipeline whose batches have a fixed amount of work instead of a fixed number of rays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from hardmine_ns.data import RayDataManager
from hardmine_ns.mining.pays import REST, CostWatch
from hardmine_ns.streams import Draw, seed_step
from ns_support.errors import require
from ns_support.help import documented
from ns_support.pipeline import SharedPipeline, SharedPipelineConfig
from ns_support.terminal import say

_GREATEST_GROWTH = 1.5
"""Factor by which a batch may grow in one step: a grid that empties all at once must not make a batch explode."""
RayRule = Literal["blocks", "uniform"]
_TOO_SLOW = 1.05
"""Time of a mined step over that of one without mining, above which mining rests: clearly, whatever the noise."""
CPU_STEPS, GPU_STEPS = 6_000, 30_000
"""Length of training unless told otherwise."""


@documented
@dataclass
class AdaptiveRaysPipelineConfig(SharedPipelineConfig):
    """Chooses the number of rays such that a batch has the wanted number of samples."""

    _target: type = field(default_factory=lambda: AdaptiveRaysPipeline)
    """Class to instantiate."""
    target_num_samples: int = 1 << 18
    """Visible samples wanted in a batch (B) of a process, >= 1. Mined or not: rays follow B, not the samples drawn."""
    max_searched_ratio: float = 4.0
    """Most samples whose density is looked up, as a multiple of `target_num_samples`, > 0."""
    min_num_rays: int = 64
    """Fewest rays in a batch, >= 1."""
    max_num_rays: int = 1 << 15
    """Most rays in a batch, >= `min_num_rays`. Rays that see nothing cost little, but not nothing."""

    ray_rule: RayRule = "uniform"
    """Which rays are trained. blocks: more of those where the images are still wrong, weighted such that the gradient
    stays that of all pixels; uniform: all pixels alike."""
    ray_uniform_share: float = 0.2
    """Part of the rays that are drawn uniformly all the same, in (0, 1]: no weight exceeds its inverse."""
    ray_weight_power: float = 1.0
    """Exponent of the rays' weights, in [0, 1]: 1 is without bias, less leaves one towards what is wrong."""

    mining_may_rest: bool = True
    """Whether all samples are backpropagated where mining turns out to make no step cheaper, on a CPU: one step in 64
    is done without it, to know."""

    def check(self) -> None:
        """Refuse settings that can't be trained with.

        Raises:
            UserError: names the setting, its value and what it must be.
        """
        super().check()
        _check(self)


class AdaptiveRaysPipeline(SharedPipeline):
    """Unlike nerfstudio's `DynamicBatchPipeline` it has a floor and a cap and survives batches without samples.

    Several processes have a batch each, all of the same number of rays; the step is that of all rays together.
    """

    config: AdaptiveRaysPipelineConfig
    datamanager: RayDataManager
    _num_rays: torch.Tensor

    def __init__(
        self,
        config: AdaptiveRaysPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        config.check()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        # What the model's visibility pass found decides; until then, assume rays that cross the whole grid. Part of the
        # checkpoint, as the next step depends on it; on the host, which needs it.
        self.register_buffer("_num_rays", torch.tensor(config.min_num_rays))
        self._costs = CostWatch()
        self._set_num_rays()
        if test_mode == "inference":  # without images
            return
        if config.ray_rule == "blocks":
            self.datamanager.mine_rays(config.ray_uniform_share, config.ray_weight_power, self.processes)
        else:
            self.datamanager.keep_on_gpu()

    @property
    def num_rays(self) -> int:
        """Rays of the next step."""
        return int(self._num_rays)

    @num_rays.setter
    def num_rays(self, number: int) -> None:
        self._num_rays.fill_(number)

    def describe(self) -> str:
        """The size of the hash table and of a step, and which samples are backpropagated."""
        c = self.model.config
        rule = "all of them" if c.mining_rule == "off" else f"the hard ones ({c.mining_rule})"
        return (
            f"{c.num_levels} levels of up to 2^{c.log2_hashmap_size} rows; {self.config.target_num_samples:,} visible "
            f"samples a step, of which {rule} are backpropagated."
        )

    def describe_length(self, steps: int) -> str:
        """How long it takes without a GPU."""
        if self.model.device.type != "cpu" or steps != CPU_STEPS:
            return ""
        return f"Some 10 minutes on one core; nerfstudio's own instant-ngp has {GPU_STEPS:,} (--max-num-iterations)."

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """One training step's outputs, losses and metrics; then chooses the next batch's rays.

        The losses are this rank's part: over all ranks they add up to the mean over all rays.
        """
        self._settle()
        # Not as soon as they are chosen: until then the trainer reads off the sampler how many rays this step had.
        self._set_num_rays()
        seed_step(self.model.seed, step, Draw.RAYS)
        self._watch_costs(step)
        self.model.mining.begin_step()
        outputs, losses, metrics = super().get_train_loss_dict(step)
        size = self.processes.size
        self._remember(metrics)
        losses = {name: loss / size for name, loss in losses.items()}
        metrics["num_rays_per_batch"] = torch.tensor(float(self.num_rays))
        counts = self.model.sample_counts
        self._costs.end(counts.visible)
        visible, searched = counts.visible, counts.searched
        if size > 1:  # alone, the host knows
            both = torch.tensor([visible, searched], device=self.model.device)
            visible, searched = (int(n) // size for n in self.processes.sum(both))
        if not self.model.fixed.undecided:
            self.num_rays = next_num_rays(self.num_rays, visible, searched, self.config)
        return outputs, losses, metrics

    def _settle(self) -> None:
        """Choose the next step's rays by the latest step, if only a GPU knew until now what it came to."""
        found = self.model.fixed.read(self.model)
        if found is not None:
            self.model.sample_counts = found
            self.num_rays = next_num_rays(self.num_rays, found.visible, found.searched, self.config)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of all modules, with the rays of the next step."""
        self._settle()
        return super().state_dict(*args, **kwargs)

    def _watch_costs(self, step: int) -> None:
        """Let mining rest where it makes no step cheaper. Not on a GPU, whose time the host's clock does not show."""
        mining = self.model.mining
        if self.config.mining_may_rest and mining.rule != "off" and self.model.device.type == "cpu":
            ratio = self._costs.verdict()
            if ratio is not None and ratio > _TOO_SLOW:
                self._costs.rest(step)
                say(
                    f"Mining makes no step cheaper here ({ratio:.2f} times the time of one without): all samples are "
                    f"backpropagated for {REST:,} steps."
                )
            mining.rests = not self._costs.begin(step)
        else:
            mining.rests = False

    def _remember(self, metrics: dict[str, Any]) -> None:
        """Tell the memory of the images what this step's rays have shown and cost."""
        memory, found = self.datamanager.memory, self.model.ray_findings
        if memory is None or found is None:
            return
        # A ray costs as much as a sample before it has any.
        memory.learn(found.pixels, found.errors, found.samples + 1.0)
        metrics["ray_mining_gain"] = torch.tensor(memory.gain)

    def _set_num_rays(self) -> None:
        sampler = self.datamanager.train_pixel_sampler
        if sampler is not None:
            sampler.set_num_rays_per_batch(self.num_rays)


def _check(config: AdaptiveRaysPipelineConfig) -> None:
    c = config
    for name, holds, wanted in (
        ("target-num-samples", c.target_num_samples >= 1, "at least 1"),
        ("max-searched-ratio", c.max_searched_ratio > 0, "more than 0"),
        ("min-num-rays", c.min_num_rays >= 1, "at least 1"),
        ("ray-uniform-share", 0 < c.ray_uniform_share <= 1, "in (0, 1]"),
        ("ray-weight-power", 0 <= c.ray_weight_power <= 1, "in [0, 1]"),
        ("max-num-rays", c.max_num_rays >= c.min_num_rays, f"at least min-num-rays, {c.min_num_rays}"),
    ):
        require(f"--pipeline.{name}", holds, wanted, getattr(c, name.replace("-", "_")))


def next_num_rays(rays: int, visible: int, searched: int, config: AdaptiveRaysPipelineConfig) -> int:
    """Rays for the next batch, from what this one came to.

    Args:
        rays: of this batch, > 0.
        visible: its visible samples, >= 0.
        searched: samples whose density was evaluated, >= `visible`.
        config: target, floor and cap.

    Returns:
        A number within floor and cap.
    """
    fit_visible = config.target_num_samples / max(visible, 1)
    fit_searched = config.max_searched_ratio * config.target_num_samples / max(searched, 1)
    wanted = rays * min(fit_visible, fit_searched, _GREATEST_GROWTH)
    return int(min(max(wanted, config.min_num_rays), config.max_num_rays))
