import pytest
import torch

from ns_support.corrections.visits import VisitAdam, VisitAdamConfig

RATE = 0.1


def visited(gradients, rows=3):
    """Where rows end up that get gradients [steps, rows]; one that gets 0 is not visited."""
    parameter = torch.nn.Parameter(torch.zeros(rows, 2))
    optimizer = VisitAdam([parameter], lr=RATE)
    path = []
    for gradient in gradients:
        parameter.grad = torch.as_tensor(gradient, dtype=torch.float32)[:, None].expand(rows, 2).contiguous()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


def test_a_row_moves_by_the_learning_rate_at_each_visit_where_they_agree():
    path = visited([[1.0, -2.0, 0.0]] * 5)
    torch.testing.assert_close(path[-1, 0], torch.full((2,), -4 * RATE))  # the first visit moves nothing
    torch.testing.assert_close(path[-1, 1], torch.full((2,), 4 * RATE))
    assert not path[:, 2].any()


def test_other_steps_change_nothing():
    """A row that is seen at one step in ten goes where it would go if it were seen at each."""
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)) + 1
    often = visited([[v, 0.0, 0.0] for v in values.tolist()])
    seldom = visited([[v if i == 0 else 0.0, 1.0, 0.0] for v in values.tolist() for i in range(10)])
    torch.testing.assert_close(seldom[-1, 0], often[-1, 0])


def test_where_visits_contradict_one_another_steps_are_short():
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    steps = visited(noise).diff(dim=0).abs()[20:]
    assert float(steps.mean()) < 0.15 * RATE
    assert float(visited(noise + 3.0).diff(dim=0).abs()[20:].mean()) > 0.7 * RATE


def test_its_state_resumes():
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    whole = visited(noise)
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = VisitAdamConfig(lr=RATE).setup([parameter])
    for i, gradient in enumerate(noise):
        if i == 6:
            state, optimizer = optimizer.state_dict(), VisitAdamConfig(lr=RATE).setup([parameter])
            optimizer.load_state_dict(state)
        parameter.grad = gradient[:, None].expand(3, 2).contiguous()
        optimizer.step()
    assert torch.equal(parameter.detach(), whole[-1])


@pytest.mark.parametrize("start", [1.0, -0.5])
def test_it_finds_a_minimum_through_noise(start):
    draw = torch.Generator().manual_seed(1)
    parameter = torch.nn.Parameter(torch.full((1, 1), start))
    optimizer = VisitAdam([parameter], lr=RATE)
    for i in range(400):
        optimizer.param_groups[0]["lr"] = RATE * 0.01 ** (i / 400)
        parameter.grad = 2 * parameter.detach() + 0.3 * torch.randn(1, 1, generator=draw)
        optimizer.step()
    assert abs(float(parameter)) < 0.1
