"""The cost of starting from an official checkpoint."""

from crate.tasks.cost import KindCost

COST = KindCost()
