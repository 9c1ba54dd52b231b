"""What mining gains over the best training without it: processor seconds to fixed scores, and scores at equal seconds.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/mining.py run lego_200 --parser blender-data \
        --variants baseline@16384 baseline points both --seeds 5 --at 30 60 120 --output lego.json
    python benchmarks/mining.py show lego.json --levels 26 28

Variants. Each has the method's batch, or, as points@8192, one of so many visible samples:

    two-pass     as nerfstudio's instant-ngp: a pass over the densities of all marched samples, only to find the visible
                 ones; then a second pass over these from the start, which also computes a gradient of their positions
    plain        one pass resumes from the other; no sample is merged, the table has 16 levels of 2^19 rows
    earlier      plain, and of a batch's samples the hard ones are backpropagated: the method as it was
    baseline     the best without mining: thin samples are merged, the table is small, empty space is known sooner
    points       baseline, and of a batch's samples the hard ones are backpropagated
    systematic   the same, drawn evenly along the rays
    multinomial, topk    the same by the rules that are not unbiased
    rays         baseline, and rays are drawn where images are wrong
    both         points and rays; systematic-both: the same, evenly drawn
    per-head     both, and samples are drawn for density and colour separately
    strides      both, and thin samples are merged by a map of hardness in place of thickness

For each seed all variants are trained in one process in turn, some seconds at a time, so that other load on the machine
affects all alike. A variant's clock is the process's time (all threads) during its training steps. A point is PSNR over
test views, evenly spread, on every third pixel of every third row, over the method's background. The JSON file is
written after each point; seeds that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from common.activations import ActivationMeter
from common.intervals import in_words
from common.report import machine_facts, print_table, write_json
from common.training import configure, evenly_spread
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

from hardmine_ns.marching import Composite, PackedSamples, composite
from hardmine_ns.mining import MiningStatistics
from hardmine_ns.model import HardMineModel
from hardmine_ns.optimizers import fit_learning_rates
from hardmine_ns.pipeline import CPU_STEPS, AdaptiveRaysPipeline
from hardmine_ns.rendering.field import spherical_harmonics, truncated_exp
from hardmine_ns.rendering.visibility import Rays, SampleCounts, search
from ns_support.rays import camera_rays

_UNMINED = ["mining_rule=off", "pipeline.ray_rule=uniform"]
_LARGE = ["merge_most=1", "log2_hashmap_size=19", "num_levels=16", "max_res=2048", "grid_blocks_first=False"]
_PLAIN = [*_UNMINED, *_LARGE]
VARIANTS: dict[str, list[str]] = {
    "two-pass": _PLAIN,
    "plain": _PLAIN,
    "earlier": [*_LARGE, "mining_rule=poisson", "mining_decay=0.99", "pipeline.ray_rule=uniform"],
    "baseline": _UNMINED,
    "points": ["mining_rule=poisson", "pipeline.ray_rule=uniform"],
    "systematic": ["mining_rule=systematic", "pipeline.ray_rule=uniform"],
    "systematic-both": ["mining_rule=systematic", "pipeline.ray_rule=blocks"],
    "multinomial": ["mining_rule=multinomial", "pipeline.ray_rule=uniform"],
    "topk": ["mining_rule=topk", "pipeline.ray_rule=uniform"],
    "rays": ["mining_rule=off", "pipeline.ray_rule=blocks"],
    "both": ["mining_rule=poisson", "pipeline.ray_rule=blocks"],
    "per-head": ["mining_rule=poisson", "pipeline.ray_rule=blocks", "mining_heads=separate"],
    "strides": ["mining_rule=poisson", "pipeline.ray_rule=blocks", "merge_by=hardness"],
}
"""What each variant changes of the method's configuration."""
BATCH = "@"
"""Between a variant's name and its number of visible samples in a batch, if that is not the method's."""
SLICE_SECONDS = 2.0
"""Training time of a variant before it is the next one's turn."""
METERED_STEPS = 3
"""Steps whose activations are measured: one of them at most is done without mining for comparison, as one in 64 is."""
PIXEL_STRIDE = 3
"""Of the test views' rows and columns, every one of these is scored."""


class TwoPassModel(HardMineModel):
    """Renders a training batch as nerfstudio 1.1.5's instant-ngp does."""

    def populate_modules(self) -> None:
        """Like every other step of this model, those on a GPU wait for sizes."""
        super().populate_modules()
        self.fixed.refuses = True

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
    fraction: float = 1.0
    """b / B: mined samples over visible samples, mean over the second half of the steps."""
    rays: float = 0.0
    """Rays of a step, likewise."""
    visible: float = 0.0
    """Visible samples of a step, B, likewise."""
    searched: float = 0.0
    """Samples that the visibility pass evaluates in a step, likewise."""
    activation_bytes_per_sample: float = 0.0
    """Peak during a step, per visible sample: the median of those right after the run."""


class Run:
    """The training of one variant; its clock runs in `train_until` only."""

    def __init__(self, variant: str, seed: int, options: argparse.Namespace) -> None:
        name, _, batch = variant.partition(BATCH)
        # Without the correction of exposures, which costs time and has nothing to do with mining.
        changes = ["exposure=off", *VARIANTS[name], *options.option]
        changes += [f"pipeline.target_num_samples={batch}"] if batch else []
        config = configure(options.method, options.data, options.parser, options.steps, options.output.parent, changes)
        if name == "two-pass":
            config.pipeline.model._target = TwoPassModel
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        mode = "test" if options.parser == "blender-data" else "val"
        device = options.device
        self.pipeline: AdaptiveRaysPipeline = config.pipeline.setup(device=device, test_mode=mode)
        self.optimizers = Optimizers(config.optimizers, self.pipeline.get_param_groups())
        fit_learning_rates(self.optimizers, options.steps)
        self.result = Result(variant, seed)
        self.seconds, self.steps = 0.0, 0
        self._counts: list[tuple[SampleCounts, float, int]] = []

    def train_until(self, seconds: float) -> None:
        """Train until the clock shows so many seconds."""
        self.pipeline.train()
        clock = time.perf_counter if self.pipeline.device.type == "cuda" else time.process_time
        while self.seconds < seconds:
            start = clock()
            self._step()
            if self.pipeline.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += clock() - start
            model = self.pipeline.model
            self._counts.append((model.sample_counts, model.mining.statistics.fraction, self.pipeline.num_rays))

    @torch.no_grad()
    def evaluate(self, images: int) -> None:
        """Add a point to the curve: mean PSNR over test views, evenly spread."""
        self.pipeline.eval()
        loader = self.pipeline.datamanager.fixed_indices_eval_dataloader
        scores = []
        for index in evenly_spread(len(self.pipeline.datamanager.eval_dataset), images):
            camera, batch = loader.get_camera(index)
            some = (slice(None, None, PIXEL_STRIDE),) * 2
            rgb = self.pipeline.model.get_outputs_for_camera_ray_bundle(camera_rays(camera)[some])["rgb"]
            truth = self.pipeline.model.renderer_rgb.blend_background(batch["image"][some].to(rgb.device))
            scores.append(-10 * float(torch.log10((rgb - truth).square().mean())))
        self.result.curve.append(Point(round(self.seconds, 2), self.steps, round(mean(scores), 4)))

    def finish(self) -> Result:
        """Measure the activations of some more steps, and complete the result."""
        late = self._counts[len(self._counts) // 2 :]
        result, model = self.result, self.pipeline.model
        result.visible, result.searched = (mean(getattr(c, n) for c, *_ in late) for n in ("visible", "searched"))
        result.fraction, result.rays = mean(f for _, f, _ in late), mean(r for *_, r in late)
        self.pipeline.train()
        found = []
        for _ in range(METERED_STEPS):
            with ActivationMeter(list(model.parameters())) as meter:
                self._step()
            found.append(meter.peak / max(model.sample_counts.visible, 1))
        result.activation_bytes_per_sample = median(found)
        return result

    def _step(self) -> None:
        self.pipeline.model.update_grid(self.steps)
        self.optimizers.zero_grad_all()
        _, losses, _ = self.pipeline.get_train_loss_dict(self.steps)
        total: Tensor = sum(losses.values())  # type: ignore[assignment]
        total.backward()
        self.optimizers.optimizer_step_all()
        for scheduler in self.optimizers.schedulers.values():
            scheduler.step()
        self.steps += 1


def run_seed(seed: int, options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Train all variants in turn, and write each point as soon as it is known."""
    runs = [Run(variant, seed, options) for variant in options.variants]
    low = 0.0
    for at in options.at:
        for until in np.append(np.arange(low, at, SLICE_SECONDS)[1:], at):
            for one in runs:
                one.train_until(float(until))
        for one in runs:
            one.evaluate(options.views)
            last = one.result.curve[-1]
            print(f"{seed} {one.result.variant:10s} {last.seconds:7.1f} s {last.steps:6d} {last.psnr:6.2f}", flush=True)
        low = at
        write_json(options.output, record | {"unfinished": [asdict(one.result) for one in runs]})
    record["runs"] += [asdict(one.finish()) for one in runs]
    write_json(options.output, record)


def run(options: argparse.Namespace) -> None:
    """Run the seeds that the output file does not have yet."""
    options.at = sorted(options.at)
    names = ("method", "steps", "at", "views", "option", "variants")
    about = {"scene": options.data.name, **machine_facts()} | {name: getattr(options, name) for name in names}
    record: dict[str, Any] = {"about": about, "runs": []}
    if options.output.is_file():
        found = json.loads(options.output.read_text())
        if found["about"] != about:
            raise SystemExit(f"{options.output} is of other runs: {found['about']}")
        record["runs"] = found["runs"]
    seeds = [seed for seed in range(options.first_seed, options.first_seed + options.seeds)]
    seeds = [seed for seed in seeds if seed not in {done["seed"] for done in record["runs"]}]
    if seeds:
        compile_kernels(options)
    for seed in seeds:
        run_seed(seed, options, record)


def compile_kernels(options: argparse.Namespace) -> None:
    """Train each variant for a second: kernels are compiled then, which is no part of the times."""
    for variant in options.variants:
        Run(variant, 0, options).train_until(1.0)


def seconds_to(curve: list[dict[str, Any]], psnr: float) -> float:
    """Training time at which a curve first reaches a PSNR, interpolated; NaN if it never does or starts above it."""
    for before, after in pairwise(curve):
        if before["psnr"] < psnr <= after["psnr"]:
            share = (psnr - before["psnr"]) / (after["psnr"] - before["psnr"])
            return float(before["seconds"] + share * (after["seconds"] - before["seconds"]))
    return float("nan")


def summary(record: dict[str, Any], levels: list[float], reference: str) -> list[dict[str, Any]]:
    """One row per variant, compared with the reference seed by seed; 95 % bootstrap intervals over the seeds."""
    by = {(r["variant"], r["seed"]): r for r in record["runs"]}
    seeds, rows = sorted({r["seed"] for r in record["runs"]}), []
    for variant in record["about"]["variants"]:
        own, base = ([by[v, seed] for seed in seeds] for v in (variant, reference))
        pairs = list(zip(own, base, strict=True))
        row: dict[str, Any] = {"variant": variant, "seeds": len(seeds)}
        for i, at in enumerate(record["about"]["at"]):
            row[f"dB at {at:g} s"] = in_words([r["curve"][i]["psnr"] for r in own])
        gains = [r["curve"][-1]["psnr"] - b["curve"][-1]["psnr"] for r, b in pairs]
        row["gain, dB"] = in_words(gains)
        for level in levels:
            row[f"s to {level:g} dB"] = in_words([seconds_to(r["curve"], level) for r in own])
            row[f"times faster to {level:g}"] = in_words(
                [seconds_to(b["curve"], level) / seconds_to(r["curve"], level) for r, b in pairs]
            )
        row["steps"] = round(mean(r["curve"][-1]["steps"] for r in own))
        row |= {name: round(mean(r[name] for r in own)) for name in ("rays", "visible", "searched")}
        row["b/B"] = f"{mean(r['fraction'] for r in own):.2f}"
        row["bytes/sample"] = round(mean(r["activation_bytes_per_sample"] for r in own))
        rows.append(row)
    return rows


def a_variant(given: str) -> str:
    """A variant as the command line names it.

    Raises:
        argparse.ArgumentTypeError: there is no such variant, or its batch is not a number.
    """
    name, separator, batch = given.partition(BATCH)
    if name not in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(VARIANTS)}")
    if separator and not (batch.isdecimal() and int(batch) > 0):
        raise argparse.ArgumentTypeError(f"the batch of {given!r} must be a positive number of samples")
    return given


def show(options: argparse.Namespace) -> None:
    """Print each file's table, a variant a column."""
    for path in options.files:
        record = json.loads(path.read_text())
        print(f"\n{path.stem}: {record['about']}")
        rows = summary(record, options.levels, options.reference)
        print_table([{"": name} | {row["variant"]: row[name] for row in rows} for name in list(rows[0])[1:]])


def main() -> None:
    """Parse the command line, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("run", help="train the variants and write their points")
    training.add_argument("data", type=Path)
    training.add_argument("--parser", default="nerfstudio-data", choices=sorted(all_dataparsers))
    training.add_argument("--method", default="instant-ngp-hardmine-bounded")
    training.add_argument("--variants", nargs="+", default=list(VARIANTS), type=a_variant)
    training.add_argument("--at", type=float, nargs="+", default=[30.0, 60.0, 120.0, 300.0, 600.0], help="seconds")
    training.add_argument("--steps", type=int, default=CPU_STEPS, help="length that the schedules are made for")
    training.add_argument("--seeds", type=int, default=5, help="number of seeds")
    training.add_argument("--first-seed", type=int, default=0)
    training.add_argument("--views", type=int, default=10, help="test views of each evaluation")
    training.add_argument("--option", action="append", default=[], help="field=value; see common.training.configure")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training.add_argument("--output", type=Path, required=True, help="JSON file")
    training.set_defaults(act=run)
    shown = commands.add_parser("show", help="print the tables of runs")
    shown.add_argument("files", type=Path, nargs="+")
    shown.add_argument("--levels", type=float, nargs="*", default=[], help="PSNR whose time is compared, dB")
    shown.add_argument("--reference", default="baseline", help="variant that the others are compared with")
    shown.set_defaults(act=show)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
