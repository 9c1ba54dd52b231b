"""A run's config.yml read without executing anything in it."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from nerfstudio.configs.method_configs import all_methods
from small_runs import METHODS, configure

from ns_support.errors import UserError
from ns_support.runs.saved_config import check_fields, read_config

SAVED = sorted((Path(__file__).resolve().parents[2] / "data" / "runs").rglob("config.yml"))


@pytest.fixture
def saved(tmp_path):
    """A run's config.yml."""
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(configure("raygauss", Path("scene"), tmp_path, timestamp="now")))
    return path


@pytest.mark.parametrize("method", [*METHODS, "nerfacto", "depth-nerfacto", "splatfacto", "neus-facto"])
def test_every_methods_configuration_is_read_as_nerfstudio_reads_it(method, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(yaml.dump(all_methods[method]))
    assert yaml.dump(read_config(path)) == path.read_text()


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.parents[1].name)
def test_what_an_earlier_version_lacks_gets_its_default(path):
    ours, theirs = read_config(path), yaml.load(path.read_text(), Loader=yaml.Loader)
    theirs_model, ours_model = vars(theirs.pipeline.model), vars(ours.pipeline.model)
    assert {name: ours_model[name] for name in theirs_model} == theirs_model
    assert ours_model["exposure"] == "off"
    assert ours.get_checkpoint_dir() == theirs.get_checkpoint_dir()


HARMFUL = {
    "call": "!!python/object/apply:os.mkdir [TRACE]",
    "new": "!!python/object/new:os.mkdir [TRACE]",
    "popen": "!!python/object/apply:subprocess.check_call [[mkdir, TRACE]]",
    "eval": '!!python/object/apply:builtins.eval [\'__import__("os").mkdir("TRACE")\']',
    "ours": "!!python/object/apply:ns_support.runs.start.make_folder [TRACE]",
    "through": "!!python/object/apply:ns_support.runs.safe_files.os.mkdir [TRACE]",
    "name": "!!python/name:os.mkdir ''",
    "function": "!!python/name:nerfstudio.utils.scripts.run_command ''",
    "import": "!!python/name:nerfstudio.utils.scripts.subprocess ''",
    "program": "!!python/name:nerfstudio.scripts.downloads.download_data.BlenderDownload ''",
    "module": "!!python/module:antigravity ''",
    "getitem": "!!python/object/apply:_operator.getitem [{a: 1}, a]",
    "object": "!!python/object:subprocess.Popen {}",
    "state": "!!python/object:nerfstudio.models.nerfacto.NerfactoModel {}",
}


def poisoned(name, place, path):
    """Text of a configuration with a harmful entry, which would make a folder."""
    harmful = HARMFUL[name].replace("TRACE", str(path))
    return f"!!python/object:ns_support.trainer.SharedTrainerConfig\n{place}: {harmful}\n"


@pytest.mark.parametrize("place", ["foreign", "_target", "pipeline"])
@pytest.mark.parametrize("name", HARMFUL)
def test_nothing_that_is_not_on_the_list_is_executed(name, place, tmp_path):
    path, trace = tmp_path / "config.yml", tmp_path / "executed"
    path.write_text(poisoned(name, place, trace))
    with pytest.raises(UserError, match=r"is not loaded, line 2: .*(not on the list|there is no ns_support)"):
        read_config(path)
    assert not trace.exists()


def test_the_harm_is_real(tmp_path):
    """With the loader of nerfstudio's commands, the same file does something: the test above can fail."""
    trace = tmp_path / "executed"
    yaml.load(poisoned("call", "foreign", trace), Loader=yaml.Loader)
    assert trace.exists()


def edited(old, new):
    def change(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "There is no file"),
        (lambda path: path.write_text(""), "is not the configuration of a training"),
        (lambda path: path.write_text("data: here\n"), "is not the configuration of a training"),
        (lambda path: path.write_bytes(os.urandom(4000)), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is cut off, and lacks vis|is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is cut off, and lacks|is damaged"),
        (lambda path: path.write_text("[" * 5000), "is damaged"),
        (lambda path: path.write_text("x" * (5 << 20)), "is no run's config.yml: it has 5 MiB"),
        (edited("num_lobes: 7", "num_lobes: seven"), "num_lobes = 'seven', which must be of the type int"),
        (edited("RayGaussModelConfig", "OldConfig"), "there is no raygauss_ns.config.OldConfig in the version"),
        (edited("raygauss_ns.config.RayGauss", "no_such.RayGauss"), "which is not on the list"),
    ],
)
def test_a_damaged_file_is_a_sentence(damage, sentence, saved):
    damage(saved)
    with pytest.raises(UserError, match=sentence):
        read_config(saved)


def test_an_option_of_a_newer_version_is_left_out(saved):
    edited("    num_lobes: 7", "    newer_option: 3\n    num_lobes: 7")(saved)
    model = read_config(saved).pipeline.model
    assert model.num_lobes == 7
    assert not hasattr(model, "newer_option")


def test_an_entry_can_not_take_the_place_of_a_method(saved):
    saved.write_text(saved.read_text() + "get_base_dir: !!python/name:ns_support.trainer.SharedTrainer ''\n")
    assert read_config(saved).get_base_dir().name == "now"


def test_random_damage_ends_in_a_configuration_or_a_sentence(saved):
    """Cuts and flipped bits of a small configuration; anything else than a sentence would end the test."""
    whole, rng = saved.read_bytes(), random.Random(0)
    sentences = []
    for i in range(16):
        content = bytearray(whole[: rng.randrange(len(whole))] if i % 2 else whole)
        for _ in range(8 if content and i % 2 == 0 else 0):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        saved.write_bytes(content)
        try:
            read_config(saved)
        except UserError as error:
            sentences.append(error.message)
    assert len(sentences) >= 8  # each of those that are cut off
    assert all(str(saved) in sentence for sentence in sentences)


def test_a_configuration_that_nerfstudio_read_is_checked_when_the_pipeline_is_made(saved):
    config = yaml.load(saved.read_text(), Loader=yaml.Loader)
    config.pipeline.model.num_random = np.int64(300)
    check_fields(config, saved)
    config.pipeline.model.num_lobes = "seven"
    with pytest.raises(UserError, match=r"config\.yml \(pipeline\) has model.num_lobes = 'seven'"):
        config.pipeline.setup(device="cpu")
    del vars(config.pipeline)["model"]
    with pytest.raises(UserError, match="lacks model: it is cut off"):
        config.pipeline.setup(device="cpu")
