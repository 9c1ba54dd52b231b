"""A small field of two outputs, and its gradients with and without mining. Needs torch only."""

import torch
from torch import Tensor, nn

from hardmine_ns.mining import HardSampleMining

ROWS = 257


class TwoHeads(nn.Module):
    """A small field with two outputs, before their activations."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 16, dtype=dtype)
        self.density = nn.Linear(16, 1, dtype=dtype)
        self.color = nn.Linear(16, 3, dtype=dtype)
        self.rows_seen: list[int] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.rows_seen.append(len(x))
        h = torch.tanh(self.trunk(x))
        return self.density(h), self.color(h)


def concentrated_loss(outputs: tuple[Tensor, ...]) -> Tensor:
    """Few rows carry most of the gradient, as behind an early surface."""
    density, color = outputs
    rows = torch.arange(len(density), dtype=density.dtype)
    importance = (0.97**rows)[:, None]
    return (importance * density.square()).sum() + (importance * (color - 0.3).square()).sum()


def gradients(field: nn.Module) -> list[Tensor]:
    result = [p.grad.clone() for p in field.parameters()]
    field.zero_grad(set_to_none=True)
    return result


def full_gradients(field: TwoHeads, x: Tensor, loss=concentrated_loss) -> list[Tensor]:
    loss(field(x)).backward()
    return gradients(field)


def mined_gradients(field: TwoHeads, x: Tensor, mining: HardSampleMining, loss=concentrated_loss) -> list[Tensor]:
    loss(mining(field, field.parameters(), (x,))).backward()
    return gradients(field)


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * e.abs().max().clamp(min=1e-300)
