"""A packet's list holds exactly the Gaussians that its rays meet; where it is too short, windows and batches serve."""

from typing import NamedTuple

import pytest
import torch

from raygauss_ns.casting import CastSettings, Rays, whitening_matrices
from raygauss_ns.casting.types import sample_counts

pytest.importorskip("triton")

pytestmark = pytest.mark.interpreted
SETTINGS = CastSettings(step=0.02, density_threshold=0.02, sample_offset=0.5, transmittance_threshold=0.0)
GROWING = SETTINGS._replace(step_growth=0.01, max_step=0.1)
BORDER = 1e-3
"""Relative to k^2 and to distances: what float32 may see on the other side of a support's border."""


class Passages(NamedTuple):
    """Of each ray and Gaussian [R, N], in float64: |A (x - mu)|^2 = h2 + bb (t - t*)^2, and the squared cutoff k^2."""

    closest: torch.Tensor
    bb: torch.Tensor
    h2: torch.Tensor
    squared_cutoff: torch.Tensor

    def met(self, near, far, border=0.0):
        """Whether a support is met between distances [R], if all is larger by `border`; from where to where."""
        room = self.squared_cutoff * (1 + border) - self.h2
        half = (room.clamp_min(0) / self.bb).sqrt()
        enter = torch.maximum(self.closest - half, near[:, None] - border)
        leave = torch.minimum(self.closest + half, far[:, None] + border)
        return (room > 0) & (enter <= leave), enter, leave


def passages(scene, rays):
    scene, rays = scene.apply(torch.Tensor.double), rays.apply(torch.Tensor.double)
    whitenings = whitening_matrices(scene.scales, scene.quats)
    u = torch.einsum("nij,rnj->rni", whitenings, rays.origins[:, None] - scene.means)
    b = torch.einsum("nij,rj->rni", whitenings, rays.directions)
    bb = (b * b).sum(-1)
    closest = -(u * b).sum(-1) / bb
    squared_cutoff = 2 * torch.log(scene.densities / SETTINGS.density_threshold)
    return Passages(closest, bb, ((u + closest[..., None] * b) ** 2).sum(-1), squared_cutoff)


def lists_of(scene, rays, width, settings):
    """For each packet its rays, the Gaussians in its list, their intervals, and the length that the kernel noted."""
    from raygauss_ns.casting.gpu import kernels_growing, launch

    on_device, device_rays = launch.scene_and_rays(tuple(scene), Rays(*rays, width), settings)
    (kernels_growing if settings.grows else launch).collect_lists(on_device, device_rays, settings)
    lists, order = on_device.lists, on_device.hierarchy.order
    for packet, length in enumerate(lists.lengths.tolist()):
        if width:
            y, x = packet // -(-width // 8) * 4, packet % -(-width // 8) * 8
            pixels = torch.arange(len(rays.nears)).view(-1, width)[y : y + 4, x : x + 8].reshape(-1)
        else:
            pixels = device_rays.order[32 * packet : 32 * packet + 32]
        filled = max(length, 0)
        records = lists.entries[packet, :filled].long()
        yield pixels, order[records], lists.intervals[packet, :, :filled].double(), length


@pytest.fixture
def spread_scene(random_scene):
    """`spread_scene(n)`: Gaussians that are smaller the more there are; a third are needles, a fifth are absent."""

    def make(n):
        scene = random_scene(n)
        generator = torch.Generator().manual_seed(1)
        scales = (0.2 + 0.8 * torch.rand(n, 3, generator=generator)) / n ** (1 / 3)
        scales[::3, 0] *= 5
        scene.densities[3::5] = 0.01
        return scene._replace(scales=scales)

    return make


@pytest.fixture
def aimed_rays(image_rays):
    """`aimed_rays(target, origin)`: 13 x 4 pixels as narrow as an 800 pixel photograph's, one of which sees a point."""

    def make(target, origin=(0.3, -0.2, -3.0)):
        y, x = torch.meshgrid(torch.arange(4) - 2, torch.arange(13) - 6, indexing="ij")
        pixels = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
        toward = target - torch.tensor(origin)
        directions = torch.nn.functional.normalize(toward + 9e-4 * toward.norm() * pixels, dim=-1)
        return image_rays(13, 4)._replace(origins=torch.tensor(origin).repeat(52, 1), directions=directions)

    return make


def assert_exact(scene, rays, width, settings, least):
    """Each list against the hits in float64; `least` is the number of hits that there must be in all."""
    alive = scene.densities > settings.density_threshold
    ends = rays.fars.double()
    if not settings.grows:  # the last sample
        samples = sample_counts(rays.nears, rays.fars, settings) - 1 + settings.sample_offset
        ends = rays.nears.double() + settings.step * samples
    nears = torch.where(rays.nears < rays.fars, rays.nears.double(), torch.inf)
    total, doubtful = 0, 0
    for pixels, listed, intervals, length in lists_of(scene, rays, width, settings):
        all_of_them = passages(scene, rays.apply(lambda tensor: tensor[pixels]))  # noqa: B023 - used at once
        near, far = nears[pixels], ends[pixels]
        must = all_of_them.met(near, far, -BORDER)[0].any(0) & alive
        may = all_of_them.met(near, far, BORDER)[0].any(0) & alive
        found = torch.zeros(len(alive), dtype=torch.bool)
        found[listed] = True
        assert len(listed) == length == int(found.sum()), "a Gaussian is listed twice"
        assert not bool((must & ~found).any()), f"{int((must & ~found).sum())} missing"
        assert not bool((found & ~may).any()), f"{int((found & ~may).sum())} superfluous"
        total, doubtful = total + length, doubtful + int((may & ~must).sum())
        if width and not settings.grows and bool((near == near[0]).all()):
            met, enter, leave = all_of_them.met(near, far)
            enter = torch.where(met, enter, torch.inf).amin(0)[listed]
            leave = torch.where(met, leave, -torch.inf).amax(0)[listed]
            clear = leave - enter > 0.01
            start = (enter - intervals[0])[clear].median()  # the packet's first sample, at one distance for all rays
            torch.testing.assert_close(intervals[0][clear] + start, enter[clear], rtol=0, atol=3e-3)
            torch.testing.assert_close(intervals[1][clear] + start, leave[clear], rtol=0, atol=3e-3)
    assert total >= least
    assert doubtful <= max(2, 0.05 * total)


@pytest.mark.parametrize(
    ("n", "least"), [(1, 1), (31, 4), (700, 30), (5_000, 60), pytest.param(50_000, 150, marks=pytest.mark.slow)]
)
def test_a_list_is_the_exact_hit_set(n, least, spread_scene, aimed_rays):
    scene = spread_scene(n)
    assert_exact(scene, aimed_rays(scene.means[0]), 13, SETTINGS, least)


def test_rays_with_ends_of_their_own(spread_scene, aimed_rays):
    """Rays that end before, inside and behind Gaussians, begin among them, or are empty; from the middle of them."""
    scene = spread_scene(700)
    rays = aimed_rays(scene.means[2], (0.1, 0.05, -0.2))
    generator = torch.Generator().manual_seed(4)
    rays = rays._replace(nears=0.3 * torch.rand(52, generator=generator), fars=torch.rand(52, generator=generator))
    rays.fars[7] = rays.nears[7]
    assert_exact(scene, rays, 13, SETTINGS, 5)


@pytest.mark.parametrize(
    "settings", [SETTINGS, pytest.param(GROWING, marks=pytest.mark.slow)], ids=["uniform", "growing"]
)
def test_incoherent_rays(settings, spread_scene, image_rays):
    scene = spread_scene(150)
    generator = torch.Generator().manual_seed(1)
    origins = 3 * torch.nn.functional.normalize(torch.randn(34, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(torch.rand(34, 3, generator=generator) - 0.5 - origins, dim=-1)
    rays = image_rays(17, 2)._replace(origins=origins, directions=directions)
    assert_exact(scene, rays, 0, settings, 50)


def test_the_growing_step(spread_scene, aimed_rays):
    scene = spread_scene(700)
    assert_exact(scene, aimed_rays(scene.means[0]), 13, GROWING, 10)


class Collected(NamedTuple):
    """The record with which each traversal began: those that opened a window, and those for a batch of a slab's."""

    windows: list[int]
    batches: list[int]


@pytest.fixture
def short_lists(monkeypatch):
    """`short_lists(capacity)`: lists hold so few entries; gives the traversals that the kernels made."""
    from raygauss_ns.casting.gpu import kernels, kernels_growing, launch, lists, packets_growing, slabs

    def shorten(capacity):
        collected = Collected([], [])

        def noting(into):
            def collect(scene, listed, rays, resume, tiled):
                into.append(int(resume.handle.data.item()))
                return lists.collect(scene, listed, rays, resume, tiled)

            return collect

        monkeypatch.setattr(launch, "CAPACITY", capacity)
        for module in (kernels, kernels_growing, packets_growing):
            monkeypatch.setattr(module, "collect", noting(collected.windows))
        monkeypatch.setattr(slabs, "collect", noting(collected.batches))
        return collected

    return shorten


@pytest.fixture
def two_groups(random_scene, image_rays):
    """Six Gaussians and six more a unit behind them, and two rays through their middle."""
    scene = random_scene(12)
    depth = torch.tensor([-0.6, 0.6]).repeat_interleave(6)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    directions = torch.nn.functional.normalize(torch.tensor([[0.02, 0.0, 1.0], [-0.03, 0.03, 1.0]]), dim=-1)
    scene = scene._replace(means=0.2 * scene.means + depth, scales=0.5 * scene.scales)
    return scene, image_rays(2, 1)._replace(directions=directions)


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        (SETTINGS, 2),
        pytest.param(SETTINGS, 0, marks=pytest.mark.slow),
        pytest.param(GROWING, 2, marks=pytest.mark.slow),
    ],
    ids=["image", "batch", "growing"],
)
def test_windows_in_depth(settings, width, two_groups, agree, short_lists):
    collected = short_lists(10)
    settings = settings._replace(step=0.16, samples_per_slab=4, max_step=0.2)
    agree(12, two_groups[1], width, settings, two_groups[0])
    assert len(collected.windows) >= 1 + 2 * 2, "one traversal of the collecting kernel, two of each pass"
    assert not collected.batches


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        (SETTINGS, 2),
        pytest.param(SETTINGS, 0, marks=pytest.mark.slow),
        pytest.param(GROWING, 2, marks=pytest.mark.slow),
    ],
    ids=["image", "batch", "growing"],
)
def test_more_in_a_slab_than_a_list_holds(settings, width, two_groups, agree, short_lists):
    collected = short_lists(5)
    agree(12, two_groups[1], width, settings._replace(step=0.16, max_step=0.2), two_groups[0])
    assert max(collected.batches) > 0


def test_lists_of_a_large_image_are_shorter(monkeypatch):
    from raygauss_ns.casting.gpu import launch

    ray = torch.zeros(32 * 1000)
    rays = launch.GpuRays(ray, ray, ray, ray, ray, 0)
    assert launch.empty_lists(rays).entries.shape == (1000, launch.CAPACITY)
    monkeypatch.setattr(launch, "MOST_LISTED", 12 * 64 * 1000)
    assert launch.empty_lists(rays).entries.shape == (1000, 64)
    assert launch.empty_lists(rays).intervals.shape == (1000, 2, 64)
    monkeypatch.setattr(launch, "MOST_LISTED", 0)
    assert launch.empty_lists(rays).entries.shape == (1000, 32)
