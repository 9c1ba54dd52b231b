"""A resumed run keeps the sizes of its tensors. Needs neither torch nor nerfstudio."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from ns_support.runs.sizes import keep_sizes, settings_beside

CONFIG = """!!python/object:gone.in_this.Version
pipeline: !!python/object:another.Class
  _target: !!python/name:some.Function ''
  betas: !!python/tuple [0.9, 0.99]
  model: !!python/object:a.third.Class
    log2_rows: 19
    levels: 16
    name: table
    other: 1
"""


@dataclass
class Model:
    sizes_of_checkpoints: ClassVar[tuple[str, ...]] = ("log2_rows", "levels", "name", "new")
    log2_rows: int = 17
    levels: int = 16
    name: int = 3
    new: int = 5
    other: int = 2


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "config.yml").write_text(CONFIG)
    return tmp_path / "nerfstudio_models" / "step-000000001.ckpt"


def test_sizes_are_the_checkpoints(checkpoint, capsys):
    model = Model()
    keep_sizes(model, checkpoint)
    # What is no size stays, and so does what is of another type or what the run did not know.
    assert model == Model(log2_rows=19)
    assert "--pipeline.model.log2-rows 19 (not 17)" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_say_where_sizes_agree(checkpoint, capsys):
    keep_sizes(Model(log2_rows=19), checkpoint)
    keep_sizes(object(), checkpoint)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [None, "[", "just words", "pipeline: {model: 3}", "pipeline: {}"])
def test_a_file_that_can_not_be_read(checkpoint, content):
    path = checkpoint.parent.parent / "config.yml"
    path.unlink() if content is None else path.write_text(content)
    assert settings_beside(checkpoint) == {}
    model = Model()
    keep_sizes(model, checkpoint)
    assert model == Model()
