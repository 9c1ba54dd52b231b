import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def relative_error(value, expected):
    return float((value.cpu().double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("table_type", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-4)])
@pytest.mark.parametrize("points", [1, 100_001])
def test_agrees_with_the_cpu(points, table_type, tolerance):
    torch.manual_seed(0)
    encoding = HashEncoding().to(table_type)
    with torch.no_grad():
        encoding.table.normal_()
    on_gpu = HashEncoding(backend="gpu").to("cuda", table_type)
    on_gpu.load_state_dict(encoding.state_dict())
    positions, cotangent = torch.rand(points, 3), torch.randn(points, encoding.out_dim).to(table_type).float()

    exact = positions.clone().requires_grad_()
    encoding = encoding.float()
    expected = encoding(exact)
    expected.backward(cotangent)
    moved = positions.cuda().requires_grad_()
    output = on_gpu(moved)
    output.backward(cotangent.to(output))

    assert output.dtype == on_gpu.table.grad.dtype == table_type
    assert relative_error(output.detach(), expected.detach()) < tolerance
    assert relative_error(moved.grad, exact.grad) < tolerance
    assert relative_error(on_gpu.table.grad, encoding.table.grad.to_dense()) < tolerance


def test_auto_takes_the_kernels():
    encoding = HashEncoding().cuda()
    encoding(torch.rand(5, 3, device="cuda")).sum().backward()
    assert not encoding.table.grad.is_sparse
