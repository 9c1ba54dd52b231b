"""Poses of photographs or of a video: found once, kept in a folder beside them, and taken from there afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch.distributed as dist

from ns_support.concurrency.processes import Processes
from ns_support.concurrency.threads import num_threads
from ns_support.errors import UserError
from ns_support.photos.cameras import grouped
from ns_support.photos.listing import is_video, list_files
from ns_support.photos.preparing import Source, find_masks, prepare, safe_name
from ns_support.photos.result import (
    Record,
    differences,
    empty,
    file_states,
    finish,
    is_whole,
    locked,
    read_record,
    result_folder,
)
from ns_support.photos.settings import PhotosConfig
from ns_support.photos.solving import Model, solve
from ns_support.photos.video import extract_frames
from ns_support.photos.worker import Job
from ns_support.runs.progress import StepProgress, duration
from ns_support.runs.stopping import terminable
from ns_support.terminal import say, warn

FEWEST = 3
"""Fewest photographs that poses can be found for."""
_LEAST_PART = 0.25
"""Least part of the photographs that must find a place; or else what was found is hardly the scene."""
_NAMED = 5
"""Most photographs that a sentence names."""
_HELPS = (
    "What helps: sharp photographs of something that does not move and has texture, each overlapping the next by two "
    "thirds, from many places: walk around it, and do not only turn on the spot."
)
_MASK = "mask: "


class _Inputs(NamedTuple):
    """What the user gives: files by the names that the record has for them, photographs, and their masks."""

    files: dict[str, Path]
    photographs: list[Path]
    masks: dict[Path, Path]


def find_poses(source: Path, config: PhotosConfig) -> Path:
    """The folder of a COLMAP model of photographs, which is made unless it is there.

    With several processes, the first one makes it, and the others wait.

    Args:
        source: a folder of photographs, or a video.
        config: the settings.

    Raises:
        UserError: there are too few photographs, they don't hang together, or the folder can't be written.
    """
    processes = Processes.current()
    if processes.rank == 0:
        _find(source, config)
    if processes.size > 1:
        processes.broadcast_number(0, "cuda" if dist.get_backend() == "nccl" else "cpu")
    return result_folder(source, config.result, config.fallback)


def _find(source: Path, config: PhotosConfig) -> None:
    config.check()
    result = result_folder(source, config.result, config.fallback)
    if config.must_exist:
        if not is_whole(result):
            raise UserError(
                f"The poses of {source} are not in {result}, where training put them. Put that folder back, or train "
                "anew: poses that are found again would not fit the trained model."
            )
        return
    record, inputs = _described(source, config, read_record(result) if is_whole(result) else None)
    if _is_current(result, record, source, config):
        say(_reused(result))
        return
    try:
        with terminable(), locked(result, config.option("result")) as work:
            if not _is_current(result, record, source):  # another process may have made it meanwhile
                _make(source, config, inputs, record, work)
                finish(work, result)
    except KeyboardInterrupt:
        say(f"Stopped finding the poses of {source}. The same command goes on from there.")
        raise


def _described(source: Path, config: PhotosConfig, before: Record | None) -> tuple[Record, _Inputs]:
    inputs = _inputs(source, config)
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("camera_model", "max_size", "max_features")}
    if is_video(source):
        settings["max_frames"] = config.max_frames
    states = file_states(inputs.files, before.files if before else None)
    return Record(Path(os.path.abspath(source)).name, settings, states), inputs


def _inputs(source: Path, config: PhotosConfig) -> _Inputs:
    if is_video(source):
        if not source.is_file():
            raise UserError(f"The video {source} does not exist.")
        if config.masks is not None and not config.masks.is_file():
            raise UserError(
                f"{config.option('masks')} is {config.masks}: for a video, give one file, a mask for all of its frames."
            )
        masks = {} if config.masks is None else {source: config.masks}
        return _Inputs({source.name: source} | {_MASK + str(mask): mask for mask in masks.values()}, [], masks)
    found = list_files(source)
    if len(found.photographs) < FEWEST:
        raise UserError(_too_few(source, len(found.photographs), len(found.raws), found.videos))
    masks = find_masks(source, found.photographs, config.masks, config.option("masks"))
    files = {path.as_posix(): source / path for path in found.photographs}
    return _Inputs(files | {_MASK + path.as_posix(): mask for path, mask in masks.items()}, found.photographs, masks)


def _too_few(source: Path, photographs: int, raws: int, videos: list[Path]) -> str:
    number = f"{photographs or 'no'} photograph{'' if photographs == 1 else 's'}"
    if raws:
        return f"{source} holds {number} and {raws} raw files of a camera: develop those to JPEG or PNG first."
    if videos:
        return f"{source} holds {number} and a video: give the video itself, --data {source / videos[0]}."
    return f"{source} holds {number}: poses need at least {FEWEST}, and a good scene some dozens. {_HELPS}"


def _is_current(result: Path, record: Record, source: Path, config: PhotosConfig | None = None) -> bool:
    """Whether a finished result is of these photographs and settings; says what is different if there is a `config`."""
    before = read_record(result) if is_whole(result) else None
    if before is None:
        return False
    if config is not None and before.source != record.source:
        raise UserError(
            f"{result} holds the poses of {before.source}, not of {record.source}: name another folder for these with "
            f"{config.option('result')}."
        )
    settings = [f"{name} was {value}" for name, value in before.settings.items() if record.settings.get(name) != value]
    changed = ", ".join(filter(None, [differences(before.files, record.files), *settings]))
    if changed and config is not None:
        warn(f"{source} is not as it was when {result} was made: {changed}. The poses are found again.")
    if not changed and before.files != record.files:  # other times, equal contents: not to be read again
        before.files = record.files
        with contextlib.suppress(UserError):
            before.write(result)
    return not changed


def _reused(result: Path) -> str:
    record = read_record(result)
    assert record is not None
    assert record.result is not None
    registered = len(record.result["registered"])
    missing = _left_out(record.result["missing"], registered + len(record.result["missing"]))
    return (
        f"Poses of {registered} photographs from {result}, where they were put before.{' ' if missing else ''}{missing}"
    )


def _make(source: Path, config: PhotosConfig, inputs: _Inputs, record: Record, work: Path) -> None:
    begun = monotonic()
    before = read_record(work)
    if before is not None and (before.source, before.settings) == (record.source, record.settings):
        going_on = not differences(before.files, record.files)
    else:
        going_on = False
    place = work.with_name(work.name.removesuffix(".part"))
    if going_on and before is not None and before.shots is not None:
        say(f"Going on with the poses of {source}, for {place}.")
        record = before
    else:
        say(f"There are no poses for {source}: COLMAP finds them. They go to {place}, and are used again next time.")
        empty(work)
        record.write(work)
        _prepare(source, config, inputs, record, work)
        record.write(work)
    assert record.shots is not None
    groups = grouped(record.shots, config.camera_model)
    cameras = "one camera" if len(groups) == 1 else f"{len(groups)} cameras (device, zoom and size)"
    say(f"{len(record.shots)} {_what(source)}s, {cameras}.")
    job = Job(
        folder=os.path.abspath(work),
        groups=[group.entries() for group in groups],
        names=[shot.name for shot in record.shots],
        model=config.camera_model,
        video=is_video(source),
        masked=(work / "masks").is_dir(),
        max_size=config.max_size,
        max_features=config.max_features,
        threads=max(1, num_threads()),
    )
    models = solve(job)
    _take(models, record, source, work)
    assert record.result is not None
    say(
        f"{len(record.result['registered'])} of {len(record.shots)} {_what(source)}s have a pose; "
        f"{record.result['points']:,} points, {record.result['error']:.2f} pixels off on average; "
        f"{duration(monotonic() - begun)}."
    )


def _what(source: Path) -> str:
    return "frame" if is_video(source) else "photograph"


def _prepare(source: Path, config: PhotosConfig, inputs: _Inputs, record: Record, work: Path) -> None:
    """Fill `images/` and `masks/`; what was found goes to the record."""
    if is_video(source):
        say_step = lambda words: say(f"{source.name}: {words}.")  # noqa: E731
        frames = extract_frames(source, work / "frames", config.max_frames, say_step)
        sources = [Source(path, path.name, safe_name(Path(path.name)), inputs.masks.get(source)) for path in frames]
    else:
        sources = [
            Source(source / path, path.as_posix(), safe_name(path), inputs.masks.get(path))
            for path in inputs.photographs
        ]
    with StepProgress() as progress:
        progress.begin("Images", len(sources))
        prepared = prepare(sources, work, progress.follow, keep=not is_video(source))
    shutil.rmtree(work / "frames", ignore_errors=True)
    if prepared.broken:
        more = f" (and {len(prepared.broken) - 1} more)" if len(prepared.broken) > 1 else ""
        if len(prepared.shots) < FEWEST:
            raise UserError(
                f"Of the {len(sources)} photographs in {source}, {len(prepared.shots)} can be read; poses need at "
                f"least {FEWEST}. {prepared.broken[0]}"
            )
        warn(f"Left out: {prepared.broken[0]}{more}")
    record.shots, record.broken = prepared.shots, prepared.broken


def _take(models: list[Model], record: Record, source: Path, work: Path) -> None:
    """Put COLMAP's largest model in its place, and say what it lacks.

    Raises:
        UserError: it has too few photographs to be the scene.
    """
    assert record.shots is not None
    total, what = len(record.shots), _what(source)
    registered = models[0].names if models else []
    if len(registered) < max(FEWEST, _LEAST_PART * total):
        found = f"only {len(registered)} of the {total} {what}s" if registered else f"none of the {total} {what}s"
        raise UserError(
            f"COLMAP found poses for {found} of {source}: too few to train on. They do not overlap enough, are "
            f"blurred, or show too little texture. {_HELPS}"
        )
    # COLMAP may begin several times, and find parts of the largest model only.
    models = [models[0], *(model for model in models[1:] if not set(model.names) <= set(registered))]
    if len(models) > 1:
        warn(
            f"The {what}s fall into {len(models)} parts that do not hang together, of "
            f"{', '.join(str(len(model.names)) for model in models)}: the largest is used. "
            f"{what.capitalize()}s between them would join them."
        )
    sources = {shot.name: shot.source for shot in record.shots}
    missing = [sources[shot.name] for shot in record.shots if shot.name not in set(registered)]
    if missing:
        warn(_left_out(missing, total))
    shutil.rmtree(work / "sparse", ignore_errors=True)
    (work / "sparse").mkdir()
    for number, model in enumerate(models):
        os.replace(model.folder, work / "sparse" / str(number))
    shutil.rmtree(work / "models", ignore_errors=True)
    for name in ("job.json", "pairs.txt"):
        (work / name).unlink(missing_ok=True)
    record.result = {
        "registered": registered,
        "missing": missing,
        "points": models[0].points,
        "error": models[0].error,
    }
    record.write(work)


def _left_out(missing: list[str], total: int) -> str:
    if not missing:
        return ""
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    named = ", ".join(missing[:_NAMED])
    return f"{len(missing)} of {total} found no place among the others and are left out: {named}{more}."
