"""The cost of measuring the speed of a published model: the time that its recipe sets."""

from crate.tasks.cost import KindCost

COST = KindCost()
