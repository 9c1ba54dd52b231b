"""What is kept of lenses that come back, and for how long."""

import torch

from ns_support.lenses import kept
from ns_support.lenses.kept import KeptByLens
from ns_support.lenses.lens import LensType, make_lens

CPU = torch.device("cpu")


def lens(focal, width=10):
    return make_lens(LensType.PERSPECTIVE, (focal, focal), (5.0, 5.0), (width, 10), [])


class Maker:
    """Makes the number of its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls


def test_made_the_second_time_and_then_kept():
    cache, make = KeptByLens(1000), Maker()
    assert cache.get(lens(1.0), CPU, make) is None
    assert cache.get(lens(2.0), CPU, make) is None
    assert [cache.get(lens(1.0), CPU, make) for _ in range(3)] == [1, 1, 1]
    assert cache.get(lens(2.0), CPU, make) == 2
    assert cache.get(lens(2.0), torch.device("cuda"), make) is None  # another device's


def test_made_the_first_time():
    cache, make = KeptByLens(1000, first_use=True), Maker()
    assert [cache.get(lens(focal), CPU, make) for focal in (1.0, 2.0, 1.0, 2.0)] == [1, 2, 1, 2]


def test_what_is_in_use_does_not_make_room(monkeypatch):
    monkeypatch.setattr(kept, "_STALE", 6)
    cache, make = KeptByLens(250, first_use=True), Maker()
    assert [cache.get(lens(focal), CPU, make) for focal in (1.0, 2.0)] == [1, 2]
    for _ in range(5):
        assert [cache.get(lens(focal), CPU, make) for focal in (1.0, 2.0, 3.0)] == [1, 2, None]
    assert make.calls == 2
    for _ in range(8):  # the first two are not asked for any more
        cache.get(lens(3.0), CPU, make)
    assert cache.get(lens(3.0), CPU, make) == 3
    assert cache.get(lens(4.0, width=30), CPU, make) is None  # an image larger than all room
    assert make.calls == 3


def test_lenses_that_never_come_back_are_forgotten(monkeypatch):
    monkeypatch.setattr(kept, "_STALE", 50)
    monkeypatch.setattr(kept, "_MANY", 100)
    cache, make = KeptByLens(1000), Maker()
    for i in range(500):
        cache.get(lens(1.0 + i), CPU, make)
    assert len(cache._entries) <= 100
    assert make.calls == 0
