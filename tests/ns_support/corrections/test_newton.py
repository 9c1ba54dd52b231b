import math

import pytest
import torch

from ns_support.corrections.newton import VisitNewton, VisitNewtonConfig, curvature_term, l1_curvature


class Bowls:
    """One quadratic loss for each row, whose second derivatives by the last dimension differ by 1,000."""

    def __init__(self, *shape, lr=0.5, longest=100.0):
        draw, width = torch.Generator().manual_seed(0), shape[-1]
        self.wanted = torch.randn(shape, generator=draw)
        turns = torch.linalg.qr(torch.randn(shape[0], width, width, generator=draw)).Q
        self.hessians = turns @ torch.diag(torch.logspace(-1, 2, width)) @ turns.mT
        self.place = torch.nn.Parameter(torch.zeros(shape))
        self.curvature = torch.nn.Parameter(torch.zeros(shape[0], width, width))
        self.optimizer = VisitNewtonConfig(lr=lr, longest=longest).setup([self.place, self.curvature])

    def visit(self, rows, shift=0.0, scale=1.0):
        """A step at which some rows are seen, and their minima seem to lie elsewhere."""
        self.optimizer.zero_grad()
        loss = self._losses(self.place - shift)[rows].sum()
        (scale * (loss + curvature_term(self.curvature[rows], self.hessians[rows]))).backward()
        self.optimizer.step()

    def _losses(self, place):
        away = (place - self.wanted).view(len(place), -1, place.shape[-1])
        return torch.einsum("nki,nij,nkj->n", away, self.hessians, away) / 2

    @property
    def losses(self):
        return self._losses(self.place.detach())


@pytest.mark.parametrize("shape", [(3, 6), (3, 3, 4)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_row_is_at_its_minimum_after_a_few_visits(shape, scale):
    """Whatever the unit of the loss is; damping only slows the directions in which the loss hardly changes."""
    bowls = Bowls(*shape)
    before = bowls.losses
    for _ in range(15):
        bowls.visit([0, 2], scale=scale)
    assert bool((bowls.losses[[0, 2]] < 0.01 * before[[0, 2]]).all())
    assert float(bowls.losses[1]) == float(before[1])  # never seen


def test_a_visit_goes_a_part_of_the_way():
    bowls = Bowls(1, 6, lr=0.25)
    far = torch.linalg.eigh(bowls.hessians[0]).eigenvectors[:, -1]  # where damping does not count
    bowls.wanted = far[None]
    bowls.visit([0])
    assert float(bowls.place.detach()[0] @ far) == pytest.approx(0.25, rel=0.05)


def test_noise_is_averaged():
    bowls, draw = Bowls(50, 6, lr=0.05), torch.Generator().manual_seed(1)
    bowls.place.data.copy_(bowls.wanted)
    for _ in range(100):
        bowls.visit(list(range(50)), torch.randn(50, 6, generator=draw))
    ratio = float((bowls.place.detach() - bowls.wanted).square().mean())
    assert ratio < 1.3 * 0.05 / (2 - 0.05)


def test_no_step_is_longer_than_the_longest():
    bowls = Bowls(4, 3, 4, longest=0.01)
    bowls.visit([0, 1, 2, 3])
    steps = bowls.place.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(steps, torch.full((4,), 0.01), rtol=1e-4, atol=0)


def test_a_photograph_that_shows_nothing_stays():
    bowls = Bowls(3, 6)
    bowls.hessians[1] = 0
    bowls.hessians[1, 0, 0] = 1e-3  # little, and only in one direction
    for _ in range(10):
        bowls.visit([0, 1, 2])
    assert bool(torch.isfinite(bowls.place).all())
    assert float(bowls.place.detach()[1, 1:].abs().max()) < 0.01


def test_its_state_resumes():
    whole, half = Bowls(3, 6), Bowls(3, 6)
    for step in range(12):
        if step == 6:
            state = half.optimizer.state_dict()
            half.optimizer = VisitNewton([half.place, half.curvature], lr=0.5, longest=100.0)
            half.optimizer.load_state_dict(state)
        for bowls in (whole, half):
            bowls.visit([step % 3])
    assert torch.equal(whole.place, half.place)


def test_other_parameters_are_refused():
    with pytest.raises(ValueError, match=r"needs parameters .* got \[\(3, 6\), \(3, 4, 4\)\]"):
        VisitNewton([torch.nn.Parameter(torch.zeros(3, 6)), torch.nn.Parameter(torch.zeros(3, 4, 4))])


def test_the_curvature_of_a_mean_absolute_residual():
    """Against the slope's change when normally distributed residuals all shift."""
    residuals = 0.2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 0.02

    def slope(shift):
        return float((residuals + shift).sign().mean())

    assert (slope(step) - slope(-step)) / (2 * step) == pytest.approx(float(l1_curvature(residuals)), rel=0.02)
    assert math.isfinite(float(l1_curvature(torch.zeros(5))))
