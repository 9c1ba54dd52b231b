"""Hard-sample mining for any field: backpropagate only the samples that the loss still disagrees with."""

from hardmine_ns.mining.api import Field, HardSampleMining, MiningStatistics
from hardmine_ns.mining.blocks import BlockMemory
from hardmine_ns.mining.hardness import Activation, BeforeActivation, undo_activations
from hardmine_ns.mining.on_gpu import Padded, most_drawn
from hardmine_ns.mining.selection import MiningRule, poisson_probabilities, select_rows

__all__ = [
    "Activation",
    "BeforeActivation",
    "BlockMemory",
    "Field",
    "HardSampleMining",
    "MiningRule",
    "MiningStatistics",
    "Padded",
    "most_drawn",
    "poisson_probabilities",
    "select_rows",
    "undo_activations",
]
