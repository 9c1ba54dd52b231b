import pytest
import torch

from ns_support.startup.device import default_device_type


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_follows_what_the_machine_has(monkeypatch, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device_type() == expected
