import pytest
import torch
from torch import nn

from ns_support.concurrency.processes import Processes


def test_one_process_is_alone():
    alone = Processes.current()
    assert alone == Processes(0, 1)
    rows = torch.arange(3.0)
    assert alone.gather(rows) is rows
    assert alone.sum(rows) is rows
    assert alone.broadcast_number(7) == 7
    parameter = nn.Parameter(rows.clone())
    alone.add_gradients([parameter])
    assert parameter.grad is None


def test_sums_and_rows_of_all(run_processes):
    def work(rank):
        me = Processes.current()
        strided = (torch.arange(6.0).view(2, 3) * (rank + 1)).T
        me.sum(strided)
        rows = torch.full((2 * rank, 2), rank)
        return me.rank, strided.clone(), me.gather(rows), me.broadcast_number(10 - rank)

    for rank, (found, total, rows, first) in enumerate(run_processes(work, 3)):
        assert found == rank
        assert torch.equal(total, torch.arange(6.0).view(2, 3).T * 6)
        assert rows.tolist() == [[1, 1]] * 2 + [[2, 2]] * 4
        assert first == 10


def test_gradients_add_up(run_processes):
    """Dense, missing in one process, missing in all, sparse, sparse but missing in one, sparse but dense in one."""

    def work(rank):
        parameters = [nn.Parameter(torch.zeros(4, 2)) for _ in range(6)]
        dense, partly, _, sparse, partly_sparse, mixed = parameters
        dense.grad = torch.full((4, 2), 1.0 + rank)
        if rank == 1:
            partly.grad = torch.ones(4, 2)
            partly_sparse.grad = torch.sparse_coo_tensor([[3]], [[5.0, 6.0]], (4, 2), check_invariants=True)
        rows = [[0, 2], [2, 3]][rank]
        sparse.grad = torch.sparse_coo_tensor([rows], [[1.0, 2.0]] * 2, (4, 2), check_invariants=True)
        mixed.grad = torch.ones(4, 2) if rank == 0 else sparse.grad
        Processes.current().add_gradients(parameters)
        kept = sparse.grad.is_sparse and sparse.grad.is_coalesced() and partly_sparse.grad.is_sparse
        return [p.grad if p.grad is None else p.grad.to_dense() for p in parameters], kept

    for (dense, partly, missing, sparse, partly_sparse, mixed), kept in run_processes(work):
        assert torch.equal(dense, torch.full((4, 2), 3.0))
        assert torch.equal(partly, torch.ones(4, 2))
        assert missing is None
        assert sparse.tolist() == [[1, 2], [0, 0], [2, 4], [1, 2]]
        assert partly_sparse.tolist() == [[0, 0], [0, 0], [0, 0], [5, 6]]
        assert mixed.tolist() == [[1, 1], [1, 1], [2, 3], [2, 3]]
        assert kept


def test_a_model_starts_as_the_first_process_has_it(run_processes):
    def work(rank):
        torch.manual_seed(rank)
        layer = nn.BatchNorm1d(5)
        nn.init.normal_(layer.weight)
        layer.running_mean += rank
        Processes.current().broadcast_module(layer)
        Processes.current().check_same(layer.state_dict(), "here")
        return layer.state_dict()

    first, second = run_processes(work)
    torch.manual_seed(0)
    assert torch.equal(first["weight"], nn.init.normal_(torch.empty(5)))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 2.0 + 2e-7, 3.0]),  # one bit
        torch.tensor([1.0, 3.0, 2.0]),
        torch.ones(4),
    ],
    ids=["bit", "order", "size"],
)
def test_a_difference_is_named_in_every_process(run_processes, other):
    def work(rank):
        tensors = {"same": torch.arange(4), "means": torch.tensor([1.0, 2.0, 3.0]) if rank == 0 else other}
        with pytest.raises(RuntimeError, match="differ at step 3, in means"):
            Processes.current().check_same(tensors, "at step 3")

    run_processes(work)
