"""Ablation of `raygauss`: what each of its parts contributes to quality, on the same scenes, seeds and steps.

    python benchmarks/ablation.py SCENES/lego_100:blender-data SCENES/fox_270 --output ablation.json

Each variant is the method `raygauss` with a few fields of the model's configuration changed; "default" changes none.
All test views are evaluated. Results are written after every run, and a run that the JSON file already contains is not
repeated, so that an interrupted benchmark can be continued. The table gives means over the seeds and, after +-, half of
their range.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

from common.report import machine_line, write_json
from common.training import configure, train
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.engine.trainer import Trainer

DEFAULT = "default"
STEP_FACTOR = "factor of the step size"
"""Not a field of the configuration: multiplies the default dt, which depends on the scene."""

VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "SH only": {"num_lobes": 0},
    "SG only": {"sh_degree": 0},
    "density control off": {"densify_until": 0},
    "density control of RayGauss": {"densify_by_distance": False, "densify_every": 300, "densify_threshold": 4e-5},
    "density control of RayGaussX": {"densify_by_distance": True, "densify_every": 500, "densify_threshold": 1.5e-4},
    "left-end samples": {"sample_offset": 0.0},
    "midpoint samples": {"sample_offset": 0.5},
    "without L_iso": {"iso_weight": 0.0},
    "L_iso 2.5e-7": {"iso_weight": 2.5e-7},
    "L_iso 2.5e-4": {"iso_weight": 2.5e-4},
    "dt halved": {STEP_FACTOR: 0.5},
    "dt doubled": {STEP_FACTOR: 2.0},
    "dt of the papers": {"step_size": 0.0025},
    "stop at T = 1e-2": {"transmittance_threshold": 1e-2},
    "stop at T = 1e-3": {"transmittance_threshold": 1e-3},
    "stop at T = 1e-4": {"transmittance_threshold": 1e-4},
}
"""Fields of the configuration that each variant sets."""

COLUMNS = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "gaussian_count": "Gaussians",
    "train_seconds": "training s",
}


def run(variant: str, data: Path, parser: str, steps: int, seed: int) -> dict[str, Any]:
    """Train a variant and evaluate it on the test views."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure("raygauss", data, parser, steps, Path(folder), [])
        config.logging.local_writer.enable = False
        model = config.pipeline.model
        for field, value in VARIANTS[variant].items():
            if field != STEP_FACTOR:
                setattr(model, field, value)
        config.pipeline.datamanager.train_cameras_sampling_seed = seed

        def rescale_step(trainer: Trainer) -> None:
            trained = trainer.pipeline.model
            trained.config.step_size = trained.step_size * VARIANTS[variant].get(STEP_FACTOR, 1.0)

        trainer, timings = train(config, float("inf"), seed, rescale_step)
        scores = trainer.pipeline.get_average_eval_image_metrics(trainer.step)
    run = {"scene": data.name, "variant": variant, "seed": seed} | timings
    return run | {name: float(scores[name]) for name in COLUMNS if name in scores}


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table per scene, with a row per variant; the last column is the PSNR minus that of the default."""
    lines: list[str] = []
    for scene in dict.fromkeys(run["scene"] for run in runs):
        here = [run for run in runs if run["scene"] == scene]
        columns = [name for name in COLUMNS if any(name in run for run in here)]
        base = mean([run["psnr"] for run in here if run["variant"] == DEFAULT])
        lines += [
            f"\n| {scene} | " + " | ".join(COLUMNS[name] for name in columns) + " | against default |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for variant in dict.fromkeys(run["variant"] for run in here):
            rows = [run for run in here if run["variant"] == variant]
            cells = [cell(name, [run[name] for run in rows if name in run]) for name in columns]
            difference = mean([run["psnr"] for run in rows]) - base
            lines.append(f"| {variant} | " + " | ".join(cells) + f" | {difference:+.2f} dB |")
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    """The mean; NaN of no values."""
    return sum(values) / len(values) if values else float("nan")


def cell(name: str, values: list[float]) -> str:
    """The mean and, if there are several values, half of their range."""
    digits = {"psnr": 2, "ssim": 4, "lpips": 4}.get(name, 0)
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} +- {(max(values) - min(values)) / 2:.{digits}f}"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, do the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", help="FOLDER or FOLDER:DATAPARSER (default: nerfstudio-data)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("ablation.json"))
    given = parser.parse_args(arguments)

    results: dict[str, Any] = {"machine": machine_line(), "steps": given.steps, "runs": []}
    if given.output.exists():
        results = json.loads(given.output.read_text())
        if results["steps"] != given.steps:
            parser.error(f"{given.output} contains runs of {results['steps']} steps; give another --output or --steps")
    done = {(run["scene"], run["variant"], run["seed"]) for run in results["runs"]}
    for scene in given.scenes:
        folder, _, name = scene.partition(":")
        data, name = Path(folder), name or "nerfstudio-data"
        if name not in all_dataparsers:
            parser.error(f"{name} is not a data parser; choose from {', '.join(sorted(all_dataparsers))}")
        for seed in given.seeds:
            for variant in given.variants:
                if (data.name, variant, seed) not in done:
                    results["runs"].append(run(variant, data, name, given.steps, seed))
                    write_json(given.output, results)
                    gc.collect()
    print(f"\n{results['machine']}, {results['steps']} steps, seeds {', '.join(map(str, given.seeds))}")
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
