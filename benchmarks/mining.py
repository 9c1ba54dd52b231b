"""What hard-sample mining gains over two baselines, at equal time and at equal steps.

Variants, all with the same kernels, grid, batch rule and learning rate:

    two-pass     as in nerfstudio's instant-ngp: a pass over the densities of all marched samples, only to find the
                 visible ones; then a second pass over all visible samples from the start, with autograd, which also
                 computes a gradient of their positions that is not used
    baseline     the fastest without mining: the visibility pass runs front to back, the second pass resumes from its
                 features, and the positions get no gradient
    poisson, multinomial, topk    mining

For each seed, all variants are trained in turn, a few seconds at a time, so that other load on the machine affects all
of them alike. A variant's clock runs during its training steps only. PSNR is on test views, over white.

    python benchmarks/mining.py --data SCENE --seconds 60 --seeds 3 --output results/mining
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from common.report import print_table, write_json
from common.training import evenly_spread
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

from hardmine_ns.marching import Composite, PackedSamples, composite
from hardmine_ns.method import instant_ngp_hardmine_bounded
from hardmine_ns.mining import MiningStatistics
from hardmine_ns.model import HardMineModel
from hardmine_ns.optimizers import fit_learning_rates
from hardmine_ns.pipeline import AdaptiveRaysPipeline
from hardmine_ns.rendering.field import spherical_harmonics, truncated_exp
from hardmine_ns.rendering.visibility import Rays, SampleCounts, search

RULE_OF = {
    "two-pass": "off",
    "baseline": "off",
    "poisson": "poisson",
    "multinomial": "multinomial",
    "topk": "topk",
}
"""The mining rule of each variant."""
SLICE_SECONDS = 2.0
"""Training time of a variant before it is the next one's turn."""


class TwoPassModel(HardMineModel):
    """Renders a training batch as nerfstudio 1.1.5's instant-ngp does."""

    def render_training(self, rays: Rays, samples: PackedSamples) -> Composite:
        """Two unrelated passes: one for visibility, one with autograd over all visible samples and their positions."""
        everything = max(len(samples), 1)
        found = search(self.field, samples, rays, self.to_unit, *self._visibility_limits(), first_round=everything)
        kept, ray = found.samples, found.samples.ray_indices
        looked_up, densities = found.searched
        self.sample_counts = SampleCounts(len(samples), len(looked_up), len(kept))
        self._observed = looked_up, densities * self.step_size
        self.mining.statistics = MiningStatistics(len(kept), len(kept))
        positions = self.to_unit(kept.positions(rays.origins, rays.directions)).requires_grad_()
        geometry = self.field.geometry(positions)
        color = self.field.color(geometry, spherical_harmonics(rays.directions)[ray])
        return composite(truncated_exp(geometry[:, 0]), torch.sigmoid(color), kept)


class ActivationMeter:
    """Peak number of bytes that autograd saves for the backward pass; counts shared storage once, parameters never."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.peak = self._held = 0
        self._users = {p.untyped_storage().data_ptr(): 1 for p in parameters}

    def __enter__(self) -> ActivationMeter:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(self, t), lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count one more use of a storage."""
        users = self._users.get(storage.data_ptr(), 0)
        self._users[storage.data_ptr()] = users + 1
        if users == 0:
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Count one use less."""
        self._users[storage.data_ptr()] -= 1
        if self._users[storage.data_ptr()] == 0:
            del self._users[storage.data_ptr()]
            self._held -= storage.nbytes()


class _Kept:
    def __init__(self, meter: ActivationMeter, tensor: Tensor) -> None:
        # Detached: a saved output with a reference to its own graph would keep that graph alive for ever.
        self.meter, self.tensor = meter, tensor.detach() if not tensor.is_leaf else tensor
        meter.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self.meter.remove(self.tensor.untyped_storage())


@dataclass
class Point:
    """One evaluation during a run."""

    seconds: float
    steps: int
    psnr: float


@dataclass
class Result:
    """The run of one variant with one seed."""

    variant: str
    seed: int
    curve: list[Point] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    """b / B of each step: mined samples over visible samples."""
    tau: float = 1.0
    visible: float = 0.0
    """Mean number of visible samples per step, B, in the second half."""
    searched: float = 0.0
    """Mean number of samples that the visibility pass evaluates per step, in the second half."""
    activation_bytes_per_sample: float = 0.0
    """Peak during one step after the run, per visible sample."""

    @property
    def steps_per_second(self) -> float:
        """Over the whole run, including the warm-up of the grid."""
        return self.curve[-1].steps / self.curve[-1].seconds

    @property
    def fraction(self) -> float:
        """Mean b / B."""
        return mean(self.fractions)


class Trainer:
    """The training of one variant; its clock runs in `train_until` only."""

    def __init__(self, variant: str, seed: int, options: argparse.Namespace) -> None:
        config = copy.deepcopy(instant_ngp_hardmine_bounded.config)
        config.pipeline.datamanager.data = options.data
        config.pipeline.model.mining_rule = RULE_OF[variant]
        if variant == "two-pass":
            config.pipeline.model._target = TwoPassModel
        if options.target_samples:
            config.pipeline.target_num_samples = options.target_samples
        torch.manual_seed(seed)
        np.random.seed(seed)
        self.pipeline: AdaptiveRaysPipeline = config.pipeline.setup(device=options.device, test_mode="test")
        self.optimizers = Optimizers(config.optimizers, self.pipeline.get_param_groups())
        fit_learning_rates(self.optimizers, config.max_num_iterations)
        self.result = Result(variant, seed)
        self.seconds, self.steps = 0.0, 0
        self._counts: list[SampleCounts] = []

    def train_until(self, seconds: float) -> None:
        """Train until the clock shows so many seconds."""
        self.pipeline.train()
        while self.seconds < seconds:
            start = time.perf_counter()
            self._step()
            if self.pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - start
            self.result.fractions.append(self.pipeline.model.mining.statistics.fraction)
            self._counts.append(self.pipeline.model.sample_counts)

    @torch.no_grad()
    def evaluate(self, images: int) -> None:
        """Add a point to the curve: mean PSNR over test views, evenly spread."""
        self.pipeline.eval()
        loader = self.pipeline.datamanager.fixed_indices_eval_dataloader
        scores = []
        for index in evenly_spread(len(self.pipeline.datamanager.eval_dataset), images):
            camera, batch = loader.get_camera(index)
            rgb = self.pipeline.model.get_outputs_for_camera(camera)["rgb"]
            truth = self.pipeline.model.renderer_rgb.blend_background(batch["image"].to(rgb.device))
            scores.append(-10 * float(torch.log10((rgb - truth).square().mean())))
        self.result.curve.append(Point(self.seconds, self.steps, mean(scores)))

    def finish(self) -> Result:
        """Measure the activations of one more step, and complete the result."""
        late = self._counts[len(self._counts) // 2 :]
        self.result.visible = mean(c.visible for c in late)
        self.result.searched = mean(c.searched for c in late)
        self.result.tau = self.pipeline.model.mining.statistics.tau
        self.pipeline.train()
        with ActivationMeter(list(self.pipeline.model.parameters())) as meter:
            self._step()
        visible = max(self.pipeline.model.sample_counts.visible, 1)
        self.result.activation_bytes_per_sample = meter.peak / visible
        return self.result

    def _step(self) -> None:
        self.pipeline.model.update_grid(self.steps)
        self.optimizers.zero_grad_all()
        _, losses, _ = self.pipeline.get_train_loss_dict(self.steps)
        sum(losses.values()).backward()
        self.optimizers.optimizer_step_all()
        for scheduler in self.optimizers.schedulers.values():
            scheduler.step()
        self.steps += 1


def run_seed(seed: int, options: argparse.Namespace) -> list[Result]:
    """Train all variants in turn."""
    trainers = [Trainer(variant, seed, options) for variant in options.variants]
    times = np.linspace(0, options.seconds, options.points + 1)[1:]
    for low, high in zip([0.0, *times[:-1]], times, strict=True):
        for until in np.append(np.arange(low, high, SLICE_SECONDS)[1:], high):
            for trainer in trainers:
                trainer.train_until(float(until))
        for trainer in trainers:
            trainer.evaluate(options.images)
            last = trainer.result.curve[-1]
            print(f"seed {seed} {trainer.result.variant:12s} {last.seconds:7.1f} s {last.steps:6d} {last.psnr:6.2f} dB")
    return [trainer.finish() for trainer in trainers]


def at(curve: list[Point], key: str, value: float) -> float:
    """PSNR at a time or a step, interpolated between the points of a curve; NaN outside of it."""
    x = [getattr(point, key) for point in curve]
    return float(np.interp(value, x, [p.psnr for p in curve], left=np.nan, right=np.nan))


def seconds_to(curve: list[Point], psnr: float) -> float:
    """Training time at which a curve first reaches a PSNR; NaN if it never does."""
    for before, after in pairwise(curve):
        if before.psnr < psnr <= after.psnr:
            fraction = (psnr - before.psnr) / (after.psnr - before.psnr)
            return before.seconds + fraction * (after.seconds - before.seconds)
    return curve[0].seconds if curve and curve[0].psnr >= psnr else float("nan")


def spread(values: list[float]) -> str:
    """Mean and, with several seeds, standard deviation; also the number of values if some are missing (NaN)."""
    known = [float(value) for value in values if not np.isnan(value)]
    if not known:
        return "-"
    text = f"{mean(known):.2f}" + (f"±{stdev(known):.2f}" if len(known) > 1 else "")
    return text + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def summary(results: list[Result], variants: list[str]) -> list[dict[str, Any]]:
    """One row per variant; comparisons are with `baseline`, seed by seed."""
    by = {(r.variant, r.seed): r for r in results}
    seeds = sorted({r.seed for r in results})
    reference = "baseline" if "baseline" in variants else variants[0]
    rows = []
    for variant in variants:
        own = [by[variant, seed] for seed in seeds]
        base = [by[reference, seed] for seed in seeds]
        fewest = [min(by[v, s].curve[-1].steps for v in variants) for s in seeds]
        fraction = mean(r.fraction for r in own)
        ratios = [r.steps_per_second / b.steps_per_second for r, b in zip(own, base, strict=True)]
        times = [b.curve[-1].seconds / seconds_to(r.curve, b.curve[-1].psnr) for r, b in zip(own, base, strict=True)]
        rows.append(
            {
                "variant": variant,
                "PSNR at equal time": spread([r.curve[-1].psnr for r in own]),
                "PSNR at equal steps": spread([at(r.curve, "steps", n) for r, n in zip(own, fewest, strict=True)]),
                "steps/s": spread([r.steps_per_second for r in own]),
                "speed / baseline": spread(ratios),
                "cost model": f"{1.0 if RULE_OF[variant] == 'off' else 3 / (1 + 3 * fraction):.2f}",
                "speed-up to its PSNR": spread(times),
                "b/B": f"{fraction:.3f}",
                "tau": spread([r.tau for r in own]),
                "evaluated/B": f"{mean(r.searched / max(r.visible, 1) for r in own):.2f}",
                "bytes/sample": f"{mean(r.activation_bytes_per_sample for r in own):.0f}",
            }
        )
    return rows


def draw(results: list[Result], variants: list[str], path: Path) -> None:
    """Plot PSNR against training time and against steps, with a thin line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, key, label in zip(axes, ("seconds", "steps"), ("training time, s", "steps"), strict=True):
        for color, variant in enumerate(variants):
            for i, result in enumerate(r for r in results if r.variant == variant):
                x, y = [getattr(p, key) for p in result.curve], [p.psnr for p in result.curve]
                axis.plot(x, y, color=f"C{color}", lw=1, label=variant if i == 0 else None)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR on test views, dB")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Parse the command line, run, print the table, and write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="scene in Blender's format, e.g. lego")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each run")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--points", type=int, default=6, help="evaluations during a run")
    parser.add_argument("--images", type=int, default=8, help="test views of each evaluation")
    parser.add_argument("--variants", nargs="+", default=list(RULE_OF), choices=list(RULE_OF))
    parser.add_argument("--target-samples", type=int, default=0, help="visible samples per batch; 0: the default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("mining"), help="path of the results, without extension")
    options = parser.parse_args()

    warm = argparse.Namespace(**{**vars(options), "seconds": 1.0, "points": 1, "images": 1})
    run_seed(0, warm)  # compiles the kernels, which is not part of the times
    results = [result for seed in range(options.seeds) for result in run_seed(seed, options)]
    machine = {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    record = {"settings": settings, "machine": machine, "runs": [asdict(r) for r in results]}
    write_json(options.output.with_suffix(".json"), record)  # first, so that an error below loses nothing
    print_table(summary(results, options.variants))
    draw(results, options.variants, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
