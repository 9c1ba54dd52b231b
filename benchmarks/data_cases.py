"""How both methods read data as cameras, editors and exporters write them: the table in docs/data.md.

    python benchmarks/data_cases.py > table.md       # or with the names of some cases

Each case is a capture of a coloured sphere that is made for the test (`captures/`). The colour of a pixel is a function
of its ray's direction, so that the script can check that each colour is at the right ray, up to the rotation that a
data parser may apply to the whole scene. A case passes if the mean error is below 0.02, or if an error message says
what is wrong with the data.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from captures.cases import CASES, Case
from captures.sphere import color_of

from ns_support.errors import UserError
from ns_support.rays import camera_rays

METHODS = ("raygauss", "instant-ngp-hardmine")
"""The methods that the data are loaded with."""
RIGHT = 0.02
"""Mean absolute error of a colour below which the rays are right."""


class Outcome(NamedTuple):
    """What a method did with a case.

    Attributes:
        error: mean absolute error of the colours, None if the data were refused.
        sentence: the error message, or "".
        warnings: the text of the warnings.
    """

    error: float | None
    sentence: str
    warnings: str


def look(folder: Path, method: str, gray: bool = False) -> Outcome:
    """Load a capture as `ns-train` does, and compare the colours with those of their rays.

    Args:
        folder: of the capture.
        method: one of `METHODS`.
        gray: whether the images are gray.
    """
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.utils.rich_utils import CONSOLE

    from ns_support.data.warnings import forget_warnings

    forget_warnings()
    config = copy.deepcopy(all_methods[method].pipeline.datamanager)
    config.data = folder
    if hasattr(config, "triangulated_points"):
        config.triangulated_points = 0
    # The console writes to the current standard output; setting its `file` would be permanent.
    said, quiet = io.StringIO(), CONSOLE.quiet
    sentence, error = "", None
    CONSOLE.quiet = True  # as in `SharedTrainer`
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            error = mean_error(config.setup(device="cpu", test_mode="val"), gray)
    except UserError as refusal:
        sentence = str(refusal)
    finally:
        CONSOLE.quiet = quiet
    _, warning, rest = " ".join(said.getvalue().split()).partition("Warning:")
    return Outcome(error, sentence, warning + rest)


def mean_error(datamanager: Any, gray: bool) -> float:
    """Mean absolute difference between the training colours and the colours of their rays' directions."""
    cameras = datamanager.train_dataset.cameras
    if hasattr(datamanager, "cached_train"):
        datamanager.next_train(0)
        batches = datamanager.cached_train
        bundles = [camera_rays(cameras[i]) for i in range(len(batches))]
        drawn = [
            (
                b.directions.reshape(-1, 3),
                batch["image"].reshape(-1, batch["image"].shape[-1]),
                torch.full((b.directions[..., 0].numel(),), i),
            )
            for i, (b, batch) in enumerate(zip(bundles, batches, strict=True))
        ]
    else:
        datamanager.train_pixel_sampler.set_num_rays_per_batch(4096)
        bundle, batch = datamanager.next_train(0)
        drawn = [(bundle.directions, batch["image"], batch["indices"][:, 0])]
    differences = []
    for directions, image, camera in drawn:
        rotations = cameras.camera_to_worlds[camera, :, :3]
        local = (directions[:, None] @ rotations)[:, 0].double().numpy()
        wanted = color_of(local)
        values = image[:, :3].double().numpy() / (255.0 if image.dtype == torch.uint8 else 1.0)
        if gray:
            wanted = np.repeat((wanted @ [0.299, 0.587, 0.114])[:, None], 3, -1)
            low, high = values.min(), values.max()
            if high - low < 0.5 or set(np.unique(values)) <= {0.0, 1.0}:
                # The images use a part of the range, or two levels: compare what is left of the brightness.
                wanted = (
                    (wanted > 0.5).astype(float)
                    if high - low > 0.5
                    else low + (high - low) * (wanted - wanted.min()) / np.ptp(wanted)
                )
        differences.append(np.abs(values - wanted).mean(-1))
    return float(np.concatenate(differences).mean())


def verdict(outcome: Outcome, case: Case) -> str:
    """The outcome as a cell of the table."""
    if outcome.error is None:
        return f"refused: {outcome.sentence}"
    right = "right" if outcome.error < RIGHT else "WRONG"
    return f"{right}, {outcome.error:.3f}" + (f"; {outcome.warnings}" if outcome.warnings else "")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="cases of captures/cases.py (default: all)")
    names = parser.parse_args(arguments).names
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such case: {'; '.join(unknown)}; choose from: {'; '.join(CASES)}")
    print("| case | " + " | ".join(METHODS) + " |\n|---|---|---|")
    for name in names or list(CASES):
        cells = []
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                CASES[name].make(Path(folder) / "scan")
                text = verdict(look(Path(folder) / "scan", method, CASES[name].gray), CASES[name])
                cells.append(text.replace(f"{folder}/", "").replace("|", "\\|"))
        same = " | ".join(cells) if cells[0] != cells[1] else f"{cells[0]} | the same"
        print(f"| {name} | {same} |", flush=True)


if __name__ == "__main__":
    main()
