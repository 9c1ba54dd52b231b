"""Ray bundles as nerfstudio's scripts make them by hand."""

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle

from ns_support.commands.given_rays import given_rays, unit_directions


@pytest.mark.parametrize("scale", [1e-30, 0.5, 1.0, 3.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_directions_become_unit_vectors(scale, dtype):
    given = torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, 0.0]])
    if dtype in (torch.float32, torch.float64):
        given = given.to(dtype) * scale
    directions, somewhere = unit_directions(given.to(dtype))
    expected = torch.tensor([[1 / 3, -2 / 3, 2 / 3], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(directions, expected, atol=1e-6, rtol=0)
    assert bool(somewhere.all())


def test_unit_directions_stay_as_they_are():
    given = torch.nn.functional.normalize(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.equal(unit_directions(given)[0], given)


def test_a_direction_to_nowhere_is_a_ray_of_no_length():
    nowhere = torch.tensor([[0.0, 0.0, 0.0], [torch.nan, 0.0, 0.0], [torch.inf, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rays = given_rays(RayBundle(torch.zeros(4, 3), nowhere, torch.ones(4, 1)), "cpu")
    assert bool(rays.directions.isfinite().all())
    assert (rays.fars - rays.nears)[:, 0].tolist() == [0.0, 0.0, 0.0, torch.inf]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3), (2, 1, 2)])
def test_every_shape_and_type(shape):
    bundle = RayBundle(
        torch.zeros(*shape, 3, dtype=torch.float64),
        torch.ones(*shape, 3, dtype=torch.int32),
        torch.ones(*shape, 1, dtype=torch.int64),
        camera_indices=torch.zeros(*shape, 1),
        nears=torch.ones(*shape, 1, dtype=torch.float16),
        fars=torch.full((*shape, 1), 100),
        metadata={"directions_norm": torch.ones(*shape, 1)},
    )
    rays = given_rays(bundle, "cpu")
    assert rays.origins.shape == rays.directions.shape == (*shape, 3)
    assert rays.nears.shape == rays.fars.shape == rays.pixel_area.shape == rays.camera_indices.shape == (*shape, 1)
    assert {t.dtype for t in (rays.origins, rays.directions, rays.nears, rays.fars)} == {torch.float32}
    assert rays.camera_indices.dtype == torch.int64
    assert bool((rays.nears == 1).all())
    assert bool((rays.fars == 100).all())


def test_one_bound_for_all_and_none():
    origins, directions = torch.zeros(4, 3), torch.tensor([0.0, 0.0, 2.0]).expand(4, 3)
    none = given_rays(RayBundle(origins, directions, None), "cpu")
    assert none.nears is none.fars is None
    near = given_rays(RayBundle(origins, directions, None, nears=torch.full((4, 1), 2)), "cpu")
    assert bool((near.nears == 2).all())
    assert bool(near.fars.isinf().all())
    both = RayBundle(origins, directions, None)
    both.nears, both.fars = torch.tensor(0.5), torch.tensor([3, 4, 5, 6])
    assert given_rays(both, "cpu").nears.tolist() == [[0.5]] * 4
    assert given_rays(both, "cpu").fars.tolist() == [[3], [4], [5], [6]]


def test_what_is_no_ray_is_refused():
    bundle = RayBundle(torch.zeros(2, 3), torch.ones(2, 3), None)
    bundle.origins, bundle.directions = torch.zeros(2, 4), torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"must be \[\*, 3\], got \[2, 4\]"):
        given_rays(bundle, "cpu")
