"""What the tests of mining are made on."""

import pytest
import torch
from mined_field import ROWS, TwoHeads
from torch import Tensor


@pytest.fixture
def field() -> TwoHeads:
    return TwoHeads()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, 3, dtype=torch.float64)
