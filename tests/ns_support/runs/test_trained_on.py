"""dataparser_transforms.json, which stands for the training data beside checkpoints of version 0.1.0."""

import json

import pytest
import torch
from small_runs import said

from ns_support.runs.trained_on import normalization_beside

WHOLE = {"transform": [[1.0, 0.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], "scale": 0.25}


@pytest.fixture
def run(tmp_path):
    """`run(text)`: the path of a checkpoint in a run with such a file."""

    def write(text):
        (tmp_path / "dataparser_transforms.json").write_text(text)
        return tmp_path / "nerfstudio_models" / "step-000000001.ckpt"

    return write


def test_it_is_read(run, capsys):
    found = normalization_beside(run(json.dumps(WHOLE)))
    assert found["scale"] == 0.25
    torch.testing.assert_close(found["transform"], torch.tensor(WHOLE["transform"], dtype=torch.float64))
    assert said(capsys) == ""


def test_without_it_nothing_is_said(tmp_path, capsys):
    assert normalization_beside(tmp_path / "nerfstudio_models" / "step-000000001.ckpt") is None
    assert said(capsys) == ""


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "[]", "{}", json.dumps(WHOLE)[:40], json.dumps({**WHOLE, "scale": "wide"})),
        *(json.dumps({**WHOLE, "scale": scale}) for scale in (0, -1, float("nan"), 1e999, None)),
        *(
            json.dumps({**WHOLE, "transform": t})
            for t in (None, [], [[1.0]], [[float("nan")] * 4] * 3, [[10**400] * 4])
        ),
    ],
)
def test_a_damaged_one_is_named(run, text, capsys):
    assert normalization_beside(run(text)) is None
    assert "dataparser_transforms.json is damaged" in said(capsys)
