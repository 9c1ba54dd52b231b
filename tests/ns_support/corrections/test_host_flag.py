import torch

from ns_support.corrections.host_flag import HostFlag


class Counted:
    """A scalar that counts how often it is read."""

    def __init__(self):
        self.value, self.reads, self._version = True, 0, 0

    def __bool__(self):
        self.reads += 1
        return self.value


def test_a_flag_is_read_only_when_it_has_changed():
    flag, known = Counted(), HostFlag()
    assert [known.read(flag) for _ in range(3)] == [True] * 3
    assert flag.reads == 1
    flag.value, flag._version = False, 1
    assert [known.read(flag) for _ in range(3)] == [False] * 3
    assert flag.reads == 2


def test_a_tensor_may_be_written_to_or_replaced():
    module, known = torch.nn.Module(), HostFlag()
    module.register_buffer("flag", torch.tensor(False))
    assert not known.read(module.flag)
    module.flag.fill_(True)
    assert known.read(module.flag)
    module.load_state_dict({"flag": torch.tensor(False)})
    assert not known.read(module.flag)
    module.flag = torch.tensor(True)
    assert known.read(module.flag)
