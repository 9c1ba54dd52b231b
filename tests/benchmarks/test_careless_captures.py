"""Faults are in the training views only and as large as they should be; a comparison at a size of a few seconds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from small_scenes import write_disc, write_nerfstudio

from ns_support.data.formats.parsers import checked

SPLITS = ("train", "val", "test")
AWAY = 4.0
"""Distance of the cameras from the centre that they look at."""


@pytest.fixture(scope="module")
def bench(script):
    return script("careless_captures")


def ring(folder, count=11, **entries):
    """Cameras around a centre, in nerfstudio's format, whose split is told by a rule."""
    random, views = np.random.default_rng(1), []
    for i in range(count):
        c, s = math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)
        pose = np.array([[c, 0, s, AWAY * s], [0, 1, 0, 0], [-s, 0, c, AWAY * c], [0, 0, 0, 1]])
        pose[:3, 3] += (1, 2, 3)  # the centre
        views.append((f"images/{i:03d}", random.integers(0, 256, (24, 20, 3), dtype=np.uint8), pose))
    lens = {"fl_x": 30.0, "fl_y": 30.0, "cx": 10.0, "cy": 12.0, "w": 20, "h": 24, "camera_model": "OPENCV"}
    return write_nerfstudio(folder, views, **(lens | entries))


def write(kind, folder):
    folder.mkdir()
    if kind == "blender":
        return write_disc(folder, away=AWAY), BlenderDataParserConfig()
    return ring(folder), NerfstudioDataParserConfig(
        orientation_method="none", center_method="none", auto_scale_poses=False
    )


@pytest.fixture(params=["blender", "nerfstudio"])
def original(request, tmp_path):
    """A scene and the configuration of its parser."""
    return write(request.param, tmp_path / "scene")


@pytest.fixture
def make(bench, tmp_path):
    """`make(fault, scene, *words)`: the folder of the copy and what was done to it."""

    def act(fault, scene, *words):
        target = tmp_path / f"{scene.name}_{fault}"
        bench.main(["make", fault, str(scene), str(target), *words])
        return target, json.loads((target / "faults.json").read_text())[-1]

    return act


def read(config, scene, split, wrapped=True):
    config = replace(config, data=scene)
    return (checked(config) if wrapped else config).setup().get_dataparser_outputs(split)


def frames(scene):
    """Entries of all frames by the image's name without its suffix."""
    found = [frame for path in scene.glob("transforms*.json") for frame in json.loads(path.read_text())["frames"]]
    return {frame["file_path"].rpartition("/")[2].removesuffix(".png"): frame for frame in found}


@pytest.mark.parametrize("fault", ["poses", "exposure", "people"])
def test_the_split_stays_and_test_views_are_unchanged(original, make, fault):
    scene, config = original
    before = {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()}
    copy, _ = make(fault, scene)
    for wrapped in (True, False):  # this package's parser, and nerfstudio's own
        for split in SPLITS:
            first, second = (read(config, folder, split, wrapped) for folder in (scene, copy))
            assert [path.name for path in first.image_filenames] == [path.name for path in second.image_filenames]
            assert all(path.is_file() for path in second.image_filenames)
            same = [a.read_bytes() == b.read_bytes() for a, b in zip(*files(first, second), strict=True)]
            equal = np.array_equal(first.cameras.camera_to_worlds, second.cameras.camera_to_worlds)
            if split == "train":
                assert equal == (fault != "poses")
                assert same.count(False) == {"poses": 0, "exposure": len(same), "people": len(same) / 2}[fault]
            else:
                assert all(same)
                assert equal
    assert {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()} == before


def files(*outputs):
    return [one.image_filenames for one in outputs]


@pytest.mark.parametrize("both", [False, True])
def test_cameras_are_turned_and_shifted_as_far_as_told(original, make, both):
    scene, config = original
    copy, fault = make("poses", scene, "--degrees", "2", "--percent", "3", "--seed", "5", *["--both"] * both)
    assert fault["settings"]["distance"] == pytest.approx(AWAY)
    training = {path.stem for path in read(config, scene, "train").image_filenames}
    turns = []
    for name, frame in frames(scene).items():
        old, new = (np.array(one["transform_matrix"]) for one in (frame, frames(copy)[name]))
        if name not in training and not both:
            assert np.array_equal(old, new)
            continue
        turn = new[:3, :3] @ old[:3, :3].T
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(2)
        assert np.linalg.norm(new[:3, 3] - old[:3, 3]) == pytest.approx(0.03 * AWAY)
        (said,) = [view for path, view in fault["views"].items() if path.endswith(f"{name}.png")]
        np.testing.assert_allclose(new[:3, 3] - old[:3, 3], said["shift"], atol=1e-12)
        axis = np.array(said["turn"]) / 2
        np.testing.assert_allclose(turn @ axis, axis, atol=1e-12)
        turns.append(axis)
    assert len(turns) == len(fault["views"]) == (len(frames(scene)) if both else len(training))
    assert np.linalg.norm(np.mean(turns, 0)) < 0.9  # no two cameras are turned alike


def test_the_same_seed_makes_the_same_fault(make, bench, tmp_path):
    scene, _ = write("nerfstudio", tmp_path / "scene")
    _, first = make("exposure", scene, "--seed", "1")
    for seed in (1, 2):
        bench.main(["make", "exposure", str(scene), str(tmp_path / f"again_{seed}"), "--seed", str(seed)])
        (again,) = json.loads((tmp_path / f"again_{seed}/faults.json").read_text())
        assert (again == first) == (seed == 1)


@pytest.mark.parametrize("light", ["linear", "srgb"])
def test_exposures_are_those_that_are_recorded(original, make, light):
    scene, config = original
    copy, fault = make("exposure", scene, "--light", light)
    factors = []
    for old, new in zip(*files(*(read(config, folder, "train") for folder in (scene, copy))), strict=True):
        said = fault["views"][old.relative_to(scene).as_posix()]
        assert said["factors"][1] == pytest.approx(2 ** said["stops"])
        balance = np.array(said["factors"]) / said["factors"][1]
        assert abs(said["stops"]) <= 1
        assert (abs(balance - 1) <= 0.15).all()
        before, after = (np.asarray(Image.open(path)) for path in (old, new))
        assert np.array_equal(before[..., 3:], after[..., 3:])
        expected = before[..., :3] / 255
        if light == "linear":
            expected = (linear(expected) * said["factors"]).clip(0, 1)
            expected = np.where(expected < 0.0031308, 12.92 * expected, 1.055 * expected ** (1 / 2.4) - 0.055)
        else:
            expected = (expected * said["factors"]).clip(0, 1)
        np.testing.assert_allclose(after[..., :3] / 255, expected, atol=0.51 / 255)
        factors.append(said["factors"])
    assert len(np.unique(factors, axis=0)) == len(fault["views"])


def linear(values):
    return np.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_people_cover_the_area_and_are_opaque(original, make):
    scene, config = original
    copy, fault = make("people", scene, "--area", "8", "--share", "50")
    training = files(*(read(config, folder, "train") for folder in (scene, copy)))
    assert len(fault["views"]) == len(training[0]) // 2
    for old, new in zip(*training, strict=True):
        before, after = (np.asarray(Image.open(path)) for path in (old, new))
        said = fault["views"].get(old.relative_to(scene).as_posix())
        differs = (before != after).any(-1)
        assert differs.any() == (said is not None)
        if said is not None:
            assert said["area"] == pytest.approx(8, abs=2)  # few pixels
            assert 100 * differs.mean() == pytest.approx(said["area"], abs=0.5)
            assert (after[differs][:, 3:] == 255).all()
            rows, columns = np.nonzero(differs)
            assert np.hypot(rows.mean() - said["row"], columns.mean() - said["column"]) < 3


def test_a_copy_of_a_copy_has_both_faults(make, tmp_path):
    scene, config = write("nerfstudio", tmp_path / "scene")
    # nerfstudio takes such a folder for smaller images of large photographs: in a copy, they would lack the fault.
    (scene / "images_2").mkdir()
    first, _ = make("exposure", scene)
    assert not (first / "images_2").exists()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    again, _ = make("exposure", first)
    both, _ = make("poses", again)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    faults = json.loads((both / "faults.json").read_text())
    assert [fault["fault"] for fault in faults] == ["exposure", "exposure", "poses"]
    for split in SPLITS:
        old, new = files(*(read(config, folder, split) for folder in (scene, both)))
        assert [path.name for path in old] == [path.name for path in new]
        assert split == "train" or all(a.read_bytes() == b.read_bytes() for a, b in zip(old, new, strict=True))


def test_the_split_of_an_instant_ngp_scene(make, tmp_path):
    (tmp_path / "scene").mkdir()
    scene = ring(tmp_path / "scene", fl_x=None, fl_y=None, camera_angle_x=0.6, camera_model=None)
    copy, _ = make("people", scene)
    for config in (NerfstudioDataParserConfig(), InstantNGPDataParserConfig()):
        names = [[path.stem for path in read(config, folder, "test").image_filenames] for folder in (scene, copy)]
        assert names[0] == names[1]


def test_copies_where_links_can_not_be_made(make, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    scene, config = write("blender", tmp_path / "scene")
    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    copy, _ = make("exposure", scene)
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert all(path.is_file() for path in read(config, copy, "test").image_filenames)


def test_what_can_not_be_copied_is_said(bench, make, tmp_path):
    scene, _ = write("nerfstudio", tmp_path / "scene")
    make("poses", scene)
    with pytest.raises(SystemExit, match="is there already"):
        make("poses", scene)
    with pytest.raises(SystemExit, match="is no folder in"):
        make("poses", tmp_path / "nowhere")
    names = [f"images/{i:03d}.png" for i in range(11)]
    (tmp_path / "twice").mkdir()
    with pytest.raises(SystemExit, match="is trained on and tested"):
        make("poses", ring(tmp_path / "twice", train_filenames=names, test_filenames=names[:1]))


def test_parallel_axes_have_no_one_focus(bench, script):
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, 0, 3] = -1, 1
    assert script("captures.faults").mean_distance(poses) == pytest.approx(1)


def test_options_come_in_pairs(bench):
    assert bench.pairs(["--a.b-c", "x-y", "--d-e=f=g"]) == ["a.b_c=x-y", "d_e=f=g"]
    for words in (["a", "b"], ["--a"]):
        with pytest.raises(SystemExit, match="come in pairs"):
            bench.pairs(words)


def test_runs_are_written_compared_and_not_repeated(bench, make, scene, tmp_path, capsys, monkeypatch):
    copy, _ = make("poses", scene)
    output, variants = tmp_path / "rows" / "careless.json", tmp_path / "variants.json"
    variants.write_text(json.dumps({"off": [], "isotropic": ["--pipeline.model.iso-weight", "0.1"]}))
    small = ["--", "--pipeline.model.num-random", "100", "--pipeline.model.step-size", "0.05"]
    words = ["run", "raygauss", str(copy), "--parser", "blender-data", "--output", str(output), "--seed", "3"]
    bench.main([*words, "--steps", "2", "--variants", str(variants), *small])
    rows = json.loads(output.read_text())
    assert [(row["name"], row["steps_done"], row["seed"]) for row in rows] == [("off", 2, 3), ("isotropic", 2, 3)]
    assert rows[0]["options"] == ["pipeline.model.num_random=100", "pipeline.model.step_size=0.05"]
    assert rows[1]["options"] == [*rows[0]["options"], "pipeline.model.iso_weight=0.1"]
    for row in rows:
        assert {"psnr", "ssim"} <= row["scores"].keys()
        assert row["seconds"] > 0
        assert row["faults"][0]["settings"]["degrees"] == 0.5
    with monkeypatch.context() as patch:
        patch.delattr(bench, "train")
        bench.main([*words, "--steps", "2", "--name", "off", *small])  # its row is there
        with pytest.raises(SystemExit, match="has a run 'off' with steps = 2"):
            bench.main([*words, "--steps", "3", "--name", "off", *small])
    with monkeypatch.context() as patch:
        patch.setattr(bench, "train", lambda *given, whole=bench.train: (whole(*given)[0], {"steps": 1}))
        with pytest.raises(SystemExit, match="Stopped after 1 of 2 steps"):
            bench.main([*words, "--steps", "2", "--name", "ended early", *small])
    assert json.loads(output.read_text()) == rows
    bench.main([*words, "--steps", "2", "--name", "one view", "--views", "1", *small])
    assert json.loads(output.read_text())[-1]["scores"]["views"] == 1
    capsys.readouterr()
    bench.main(["show", str(output), "--baseline", "off"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_table_has_means_and_differences(bench):
    def row(scene, name, seed, **scores):
        about = {"method": "raygauss", "scene": scene, "steps": 9, "name": name, "seed": seed}
        return about | {"seconds": 10.0, "evaluation_seconds": 1.0, "scores": scores}

    rows = [row("lego_poses", "off", seed, psnr=20.0 + seed) for seed in (0, 1)]
    rows += [row("lego_poses", "SE3", 0, psnr=25.0, aligned_psnr=26.0), row("lego", "off", 0, psnr=30.0)]
    table = bench.compared(rows, "off")
    assert [one["psnr"] for one in table] == ["20.50", "25.00 (+4.50)", "30.00"]
    assert [one["aligned_psnr"] for one in table] == ["-", "26.00", "-"]
    assert [one["seeds"] for one in table] == [2, 1, 1]
    assert [one["psnr"] for one in bench.compared(rows, "lego/off")] == ["20.50 (-9.50)", "25.00 (-5.00)", "30.00"]
    assert [one["psnr"] for one in bench.compared(rows, None)] == ["20.50", "25.00", "30.00"]
