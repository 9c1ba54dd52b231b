import pytest
import torch

from ns_support.viewer.outputs import Extra, Outputs


@pytest.fixture
def made():
    """Outputs with two extras, and the list of those that were computed."""
    computed = []

    def extra(name, channels):
        def compute():
            computed.append(name)
            return torch.full((2, 3, channels), float(len(computed)))

        return Extra(compute, channels)

    ready = {"rgb": torch.zeros(2, 3, 3), "depth": torch.ones(2, 3, 1)}
    return Outputs(ready, {"normals": extra("normals", 3), "slice": extra("slice", 1)}), computed


def test_listing_computes_nothing(made):
    outputs, computed = made
    assert list(outputs) == list(outputs.keys()) == ["rgb", "depth", "normals", "slice"]
    assert len(outputs) == 4
    assert "normals" in outputs
    assert "other" not in outputs
    assert not computed


def test_an_extra_is_computed_once_and_only_when_looked_up(made):
    outputs, computed = made
    first = outputs["slice"]
    assert outputs["slice"] is first
    assert computed == ["slice"]
    assert list(outputs) == ["rgb", "depth", "normals", "slice"]
    with pytest.raises(KeyError):
        outputs["other"]


def test_everything_is_there_for_those_who_want_it_all(made):
    outputs, computed = made
    assert {name: tuple(x.shape) for name, x in outputs.items()}["normals"] == (2, 3, 3)
    assert sorted(computed) == ["normals", "slice"]


def test_pictures_can_be_added_and_taken_out(made):
    outputs, computed = made
    outputs["rgba"] = torch.zeros(2, 3, 4)
    del outputs["slice"]
    assert set(outputs) == {"rgb", "depth", "normals", "rgba"}
    assert not computed
    with pytest.raises(KeyError):
        del outputs["slice"]


def test_a_viewer_gets_what_it_shows_and_the_names_of_the_rest(made):
    outputs, computed = made
    given = outputs.only({"rgb", "slice"})
    assert computed == ["slice"]
    assert list(given) == ["rgb", "depth", "normals", "slice"]
    assert given["slice"].eq(1).all()
    assert given["normals"].shape == (2, 3, 3)
    assert not given["normals"].any()
    assert given["rgb"] is outputs["rgb"]
