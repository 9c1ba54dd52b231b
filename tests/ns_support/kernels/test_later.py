"""Numbers that the host reads a step later."""

import torch

from ns_support.kernels.later import Later


def test_numbers_are_read_once_as_they_were_sent():
    later, numbers = Later(), torch.arange(3.0)
    assert not later.sent
    assert later.read() is None
    later.send(numbers)
    numbers += 5
    assert later.sent
    assert later.read() == [0.0, 1.0, 2.0]
    assert not later.sent
    assert later.read() is None
    later.send(numbers)
    later.send(numbers + 1)
    assert later.read() == [6.0, 7.0, 8.0]
