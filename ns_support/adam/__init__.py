"""Adam whose steps for many parameters are two kernels on a GPU."""

from ns_support.adam.shared import SharedAdam, stepping_together

__all__ = ["SharedAdam", "stepping_together"]
