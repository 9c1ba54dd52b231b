import warnings

import pytest

from ns_support.startup.known_warnings import silence_known_warnings

GRAD_SCALER = "`torch.cuda.amp.GradScaler(args...)` is deprecated. Please use `torch.amp.GradScaler('cuda', args...)`."
INDEXING = "Using a non-tuple sequence for multidimensional indexing is deprecated and will be changed in pytorch 2.9;"


def warn(message, category, module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_known_warnings()
        warnings.warn_explicit(message, category, filename="f.py", lineno=1, module=module)
    return len(caught)


@pytest.mark.parametrize(
    ("message", "category", "module"),
    [
        (GRAD_SCALER, FutureWarning, "nerfstudio.engine.trainer"),
        (INDEXING, UserWarning, "nerfstudio.cameras.cameras"),
    ],
)
def test_silences_what_it_names_and_nothing_beside_it(message, category, module):
    assert warn(message, category, module) == 0
    assert warn("Another " + message, category, module) == 1
    assert warn(message, DeprecationWarning, module) == 1
    assert warn(message, category, "raygauss_ns.model") == 1


def test_the_trainer_starts_without_a_word():
    from torch.cuda.amp import GradScaler

    source = compile("GradScaler(enabled=False)", "trainer.py", "eval")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eval(source, {"__name__": "elsewhere", "GradScaler": GradScaler})
        assert len(caught) == 1  # the filter's text must follow torch's
        silence_known_warnings()
        eval(source, {"__name__": "nerfstudio.engine.trainer", "GradScaler": GradScaler})
        assert len(caught) == 1
