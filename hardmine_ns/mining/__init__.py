"""Hard-sample mining for any field: backpropagate only the samples that the loss still disagrees with."""

from hardmine_ns.mining.api import Field, HardSampleMining
from hardmine_ns.mining.blocks import BlockMemory
from hardmine_ns.mining.hardness import Activation, BeforeActivation, told, undo_activations
from hardmine_ns.mining.on_gpu import Padded, most_drawn
from hardmine_ns.mining.selection import (
    MiningHeads,
    MiningRule,
    poisson_probabilities,
    select_rows,
    union_probabilities,
)
from hardmine_ns.mining.statistics import MiningStatistics

__all__ = [
    "Activation",
    "BeforeActivation",
    "BlockMemory",
    "Field",
    "HardSampleMining",
    "MiningHeads",
    "MiningRule",
    "MiningStatistics",
    "Padded",
    "most_drawn",
    "poisson_probabilities",
    "select_rows",
    "told",
    "undo_activations",
    "union_probabilities",
]
