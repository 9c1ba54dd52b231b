"""The process that calls pycolmap: `python -m ns_support.photos.worker JOB.json`.

A process of its own can be ended at any time, its log goes to a file, and a crash of native code ends nothing else.
What it does is announced on standard output, a JSON object a line: `{"step": ..., "total": ...}`, and the result. It
ends when its standard input is closed, which the end of the parent does in any case.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ns_support.photos.pairs import all_pairs, pairs_of

_SEED = 0


@dataclass
class Job:
    """What to do, as the parent writes it.

    Attributes:
        folder: holds images/ and perhaps masks/; database.db and models/ are made in it.
        groups: cameras, with `width`, `height`, `focal`, `known` and `names`.
        names: of all photographs, in order.
        model: COLMAP's camera model.
        video: whether they are frames of a video.
        masked: whether there are masks.
        max_size: longer side for features (pixels).
        max_features: per photograph.
        threads: to use.
    """

    folder: str
    groups: list[dict[str, Any]]
    names: list[str]
    model: str
    video: bool
    masked: bool
    max_size: int
    max_features: int
    threads: int


def main(path: Path) -> None:
    """Features, matches and poses; what is in the database already is not computed again."""
    # What native code prints must not get between the messages.
    messages = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job(**json.loads(path.read_text("utf8")))
    _Solver(job, messages).run()


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through `sys.stdin`, whose lock the interpreter wants at its end
        pass
    os._exit(1)


class _Solver:
    def __init__(self, job: Job, messages: TextIO) -> None:
        import pycolmap

        self.colmap: Any = pycolmap
        self.job, self.folder, self.messages = job, Path(job.folder), messages
        self.database = self.folder / "database.db"
        pycolmap.set_random_seed(_SEED)

    def run(self) -> None:
        self.register()
        self.extract()
        self.match()
        self.map()

    def tell(self, **message: Any) -> None:
        print(json.dumps(message), file=self.messages, flush=True)

    def register(self) -> None:
        """Write cameras and photographs to the database, unless an interrupted run has done so."""
        colmap = self.colmap
        database = colmap.Database.open(self.database)
        if database.num_images() == len(self.job.names):
            database.close()
            return
        database.clear_all_tables()
        place = {name: number for number, name in enumerate(self.job.names)}
        for group in self.job.groups:
            size = group["width"], group["height"]
            camera = colmap.Camera.create_from_model_name(0, self.job.model, group["focal"], *size)
            camera.has_prior_focal_length = group["known"]
            number = database.write_camera(camera)
            rig = colmap.Rig()
            sensor = colmap.sensor_t(colmap.SensorType.CAMERA, number)
            rig.add_ref_sensor(sensor)
            rig_number = database.write_rig(rig)
            for name in group["names"]:
                image = colmap.Image(name=name, camera_id=number, image_id=place[name] + 1)
                database.write_image(image, use_image_id=True)
                frame = colmap.Frame()
                frame.rig_id = rig_number
                frame.add_data_id(colmap.data_t(sensor, image.image_id))
                database.write_frame(frame)
        database.close()

    def extract(self) -> None:
        """SIFT features of each photograph."""
        colmap, job = self.colmap, self.job
        self.tell(step="features", total=len(job.names))
        options = colmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu, options.max_image_size = job.threads, False, job.max_size
        options.sift.max_num_features = job.max_features
        reader = colmap.ImageReaderOptions()
        reader.camera_model = job.model
        if job.masked:
            reader.mask_path = self.folder / "masks"
        colmap.extract_features(
            self.database,
            self.folder / "images",
            image_names=job.names,
            camera_mode=colmap.CameraMode.PER_FOLDER,
            reader_options=reader,
            extraction_options=options,
            device=colmap.Device.cpu,
        )

    def match(self) -> None:
        """Matches of pairs, verified by their epipolar geometry."""
        colmap, job = self.colmap, self.job
        pairs = pairs_of(self.database, job.names, job.video)
        self.tell(step="matches", total=len(all_pairs(len(job.names)) if pairs is None else pairs))
        matching = colmap.FeatureMatchingOptions()
        matching.num_threads, matching.use_gpu = job.threads, False
        verification = colmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = _SEED
        options = {"matching_options": matching, "verification_options": verification, "device": colmap.Device.cpu}
        if pairs is None:
            colmap.match_exhaustive(self.database, **options)
            return
        listed = self.folder / "pairs.txt"
        listed.write_text("".join(f"{job.names[i]} {job.names[j]}\n" for i, j in pairs), "utf8")
        pairing = colmap.ImportedPairingOptions()
        pairing.match_list_path = listed
        colmap.match_image_pairs(self.database, pairing_options=pairing, **options)

    def map(self) -> None:
        """Poses and points; models are written to `models/0`, `models/1` and so on."""
        colmap, job = self.colmap, self.job
        models = self.folder / "models"
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        self.tell(step="poses", total=len(job.names))
        done = 0

        def one_more(number: int = 1) -> None:
            nonlocal done
            done += number
            self.tell(done=done)

        options = colmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed = job.threads, _SEED
        options.min_model_size = 3
        found = colmap.incremental_mapping(
            self.database,
            self.folder / "images",
            models,
            options=options,
            initial_image_pair_callback=lambda: one_more(2),
            next_image_callback=one_more,
        )
        described = [self.described(number, model) for number, model in found.items()]
        self.tell(models=sorted(described, key=lambda model: (-len(model["names"]), model["folder"])))

    def described(self, number: int, model: Any) -> dict[str, Any]:
        names = [model.image(i).name for i in model.reg_image_ids()]
        return {
            "folder": str(number),
            "names": sorted(names),
            "points": model.num_points3D(),
            "error": model.compute_mean_reprojection_error(),
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
