"""Rendering below the resolution of training: PSNR with Gaussians as trained, and widened by the pixels' size.

    python benchmarks/resolution.py RUN --factors 1 2 4 8 --views 5

Loads a finished run of `raygauss` (its folder or config.yml) and renders test views at 1 / factor of their size. The
truth is the photograph, averaged over blocks of pixels with its alpha; the background is the method's own (white on
Blender scenes). "sampled": rays through the pixels' centres, the step as trained; "averaged": `antialiased`, as
`ns-render`, `ns-eval` and the viewer do it. Seconds are processor seconds of rendering.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from common.report import print_table, write_json
from common.training import chosen_views
from nerfstudio.utils.eval_utils import eval_setup

from ns_support.data.store import downscaled_batch
from ns_support.rays import downscaled
from ns_support.runs.saved_runs import find_config


@torch.no_grad()
def main() -> None:
    """Parse the command line, run, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments.add_argument("--views", type=int, help="test views, spread evenly; all by default")
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()
    _, pipeline, _, _ = eval_setup(find_config(given.run), test_mode="test")
    model, rows = pipeline.model.eval(), []
    for factor in given.factors:
        row: dict[str, float] = {"factor": factor}
        for name in ("sampled", "averaged"):
            model.config.antialiased = name == "averaged"
            scores, seconds = [], 0.0
            for _, (camera, batch) in chosen_views(pipeline.datamanager.fixed_indices_eval_dataloader, given.views):
                small, begin = downscaled(camera, factor), time.process_time()
                outputs = model.get_outputs_for_camera(small)
                seconds += time.process_time() - begin
                image, _ = model._ground_truth(outputs, downscaled_batch(batch, factor))
                scores.append(-10 * math.log10(float((outputs["rgb"] - image).square().mean())))
            row |= {f"{name}, dB": round(sum(scores) / len(scores), 2), f"{name}, s": round(seconds / len(scores), 3)}
        rows.append(row)
    print_table(rows)
    write_json(given.output, rows)


if __name__ == "__main__":
    main()
