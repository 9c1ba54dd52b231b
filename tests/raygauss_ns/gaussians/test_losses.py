import math

import pytest
import torch

from raygauss_ns.gaussians.losses import isotropy_loss


def ratio(*s):
    return 2 / (math.pi * math.sqrt(3)) * sum(x * x for x in s) ** 1.5 / math.prod(s)


def test_mean_of_what_exceeds_ten():
    scales = torch.tensor([[1.0, 1.0, 1.0], [8.0, 1.0, 1.0], [0.01, 0.02, 0.5], [4.8, 1.0, 1.0]], dtype=torch.float64)
    expected = sum(max(ratio(*s), 10.0) - 10.0 for s in scales.tolist()) / 4
    assert isotropy_loss(scales.log()).item() == pytest.approx(expected, rel=1e-9)
    assert expected > 1


def test_size_does_not_matter():
    log_scales = torch.randn(31, 3, dtype=torch.float64) * 2
    torch.testing.assert_close(isotropy_loss(log_scales - 10.0), isotropy_loss(log_scales))


def test_gradients():
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(isotropy_loss, (2 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_())


@pytest.mark.parametrize("log_scales", [torch.zeros(0, 3), torch.zeros(1, 3), torch.tensor([[-80.0, 0.0, 80.0]])])
def test_finite_at_the_extremes(log_scales):
    log_scales.requires_grad_()
    loss = isotropy_loss(log_scales)
    loss.backward()
    assert loss.isfinite()
    assert bool(log_scales.grad.isfinite().all())
