r"""The pictures of docs/raycasting.md: no popping, wide lenses as they are, depth of field.

    OMP_NUM_THREADS=1 python benchmarks/raycasting_pictures.py WORK --output docs/images
    OMP_NUM_THREADS=1 python benchmarks/raycasting_pictures.py WORK --output docs/images --parts focus

All scenes are made here, of the shapes of examples/make_scene.py; images are before white, and no image of a held-out
view is trained on. WORK keeps scenes and runs: a part that finds its own does not make them again.

popping    turns a camera by 0.2 degrees a frame around two sets of Gaussians, splatted (sorted by their centres) and
           ray cast, and prints what changes between neighbouring frames: a made set of crossing discs, which is as hard
           as it gets, and the trained demo's scene
fisheye    trains on fisheye images and renders held-out ones
panorama   the same with 360-degree images
focus      renders the trained demo's scene by `raygauss-render` with three focus distances
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.report import machine_line, print_table
from common.training import configure, train
from PIL import Image
from raycasting import focus, popping, wide

from raygauss_ns.export import load_model, shown_cloud

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from make_scene import make_scene

PARTS = ("popping", "fisheye", "panorama", "focus")


def demo_run(given: argparse.Namespace) -> Path:
    """The config.yml of a run of `raygauss` on the demo's scene."""
    scene, folder = given.work / "demo_scene", given.work / "demo"
    config = folder / "benchmark" / "raygauss" / "run" / "config.yml"
    if not any(folder.rglob("*.ckpt")):
        if not (scene / "transforms_test.json").is_file():
            make_scene(scene, resolution=200, samples=2)
        _, timings = train(
            configure("raygauss", scene, "blender-data", given.steps, folder, []), given.minutes, given.seed
        )
        print(f"demo: {timings['steps']} steps in {timings['train_seconds'] / 60:.1f} minutes", flush=True)
    return config


def show_popping(given: argparse.Namespace) -> None:
    """Both sets of Gaussians; a picture of the made one."""
    discs, model = popping.crossing_discs(), load_model(demo_run(given))
    trained = popping.Subject("the demo's scene", shown_cloud(model), model.cast_settings, 2.6, 16.0)
    rows = []
    for subject in (discs, trained):
        shown = popping.turn(subject, given.frames)
        rows += popping.rows_of(subject, shown)
        if subject is discs:
            save(popping.picture(shown), given.output / "raycasting_popping.jpg")
    print_table(rows)


def show_wide(name: str, given: argparse.Namespace) -> None:
    """Train on one kind of camera, and show held-out views."""
    lens, scene = wide.LENSES[name], given.work / f"{name}_scene"
    if not (scene / "transforms.json").is_file():
        wide.write_scene(scene, lens, given.views, 8, given.seed)
    image, said = wide.trained(scene, given.work / name, given.steps, given.minutes, given.seed)
    save(image, given.output / f"raycasting_{name}.jpg")
    print(f"{name}, {given.views} training images of {lens.lens.width} x {lens.lens.height} pixels: {said}", flush=True)


def show_focus(given: argparse.Namespace) -> None:
    """Three focus distances beside the pinhole's image."""
    image, commands = focus.picture(demo_run(given), given.work / "path.json", given.aperture, given.lens_samples)
    save(image, given.output / "raycasting_focus.jpg")
    print("\n".join(commands), flush=True)


def save(image: Image.Image, path: Path) -> None:
    """Write a JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    """Parse the command line, make the pictures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("work", type=Path, help="folder for scenes and runs, which are kept")
    arguments.add_argument("--output", type=Path, default=Path("docs/images"), help="folder for the pictures")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--steps", type=int, default=600, help="of each training")
    arguments.add_argument("--minutes", type=float, default=5.0, help="of each training, at most")
    arguments.add_argument("--views", type=int, default=60, help="training images of the fisheye and of the panorama")
    arguments.add_argument("--frames", type=int, default=popping.FRAMES, help="of each turn")
    arguments.add_argument("--aperture", type=float, default=0.2, help="diameter of the lens (scene units)")
    arguments.add_argument("--lens-samples", type=int, default=128)
    arguments.add_argument("--seed", type=int, default=42)
    given = arguments.parse_args()
    shows = {
        "popping": lambda: show_popping(given),
        "fisheye": lambda: show_wide("fisheye", given),
        "panorama": lambda: show_wide("panorama", given),
        "focus": lambda: show_focus(given),
    }
    for part in given.parts:
        shows[part]()
    print(machine_line())


if __name__ == "__main__":
    main()
