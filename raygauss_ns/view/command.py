"""`raygauss-view`: a trained scene in the browser, without nerfstudio's trainer.

    raygauss-view splat.ply               # of raygauss-export, or any file of 3D Gaussian splatting
    raygauss-view outputs/.../config.yml  # a run of either method, or its folder

The image is coarse while the camera moves, and sharpens while it rests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

from ns_support.commands.finished import open_finished
from ns_support.errors import UserError
from ns_support.help import documented
from ns_support.runs.saved_runs import find_config
from ns_support.runs.stopping import INTERRUPTED
from ns_support.terminal import say
from ns_support.viewer.opening import View, opening_view
from ns_support.viewer.page import Page, check_address, serve
from raygauss_ns.view.files import Backdrop, Up, read_scene

_NAMES = ("rgb", "depth", "accumulation", "normals", "density_slice")
"""Outputs that both methods have."""


class Opened(NamedTuple):
    """A model to look at, in evaluation mode, where to look at it from, and what is said about it."""

    model: Any
    view: View
    about: str


@documented
@dataclass
class ViewCommand:
    """What the command is told."""

    source: tyro.conf.Positional[Path]
    """A PLY file of Gaussians, or a trained run: its config.yml or its folder."""
    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 can be reached from this machine only, 0.0.0.0 from everywhere."""
    port: int = 7007
    """Port to listen on; the next free one if it is taken."""
    up: Up | None = None
    """Axis that points upwards in a PLY file; None: z in a file of raygauss-export, -y in others. A run knows its
    own."""
    background: Backdrop = "white"
    """What is behind the Gaussians of a PLY file. A run has its own."""

    def main(self) -> None:
        """Show the page until Ctrl+C."""
        check_address(self.host, self.port)
        opened = self.open()
        page = Page(opened.model, list(_NAMES), opened.view, self.host, self.port, self.source.name)
        say(f"{opened.about}\nOpen http://{shown_host(self.host)}:{page.port} in a browser. Ctrl+C ends the command.")
        serve(page)
        say("Closed.")

    def open(self) -> Opened:
        """Read what is to be shown.

        Raises:
            UserError: it can't be shown; says why.
        """
        if self.source.is_file() and self.source.suffix.lower() not in (".yml", ".yaml"):
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            scene = read_scene(self.source, self.up, self.background, device)
            return Opened(scene.model, scene.view, f"{len(scene.model.cloud):,} Gaussians from {self.source}.")
        if not self.source.exists():
            raise UserError(f"{self.source} does not exist; give a PLY file of Gaussians, or a trained run's folder.")
        config = find_config(self.source)
        trainer, pipeline = open_finished(config, "inference")
        if not hasattr(pipeline.model, "run"):
            raise UserError(
                f"{config} is of a run of {trainer.method_name}; raygauss-view shows runs of raygauss and "
                "instant-ngp-hardmine. ns-viewer shows others."
            )
        view = opening_view(pipeline.datamanager.train_dataset.cameras)
        return Opened(pipeline.model, view, f"The run {config.parent} of {trainer.method_name}.")


def shown_host(host: str) -> str:
    """What to type in a browser on this machine for an address that is listened on."""
    return "localhost" if host in ("127.0.0.1", "0.0.0.0") else host


def entrypoint() -> None:
    """The command's entry point."""
    tyro.extras.set_accent_color("bright_yellow")
    try:
        tyro.cli(ViewCommand, prog="raygauss-view", description=__doc__).main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    entrypoint()
