"""Running errors, and draws of what is still wrong that leave the mean gradient as it is."""

from ns_support.sampling.windows import WindowMemory

__all__ = ["WindowMemory"]
