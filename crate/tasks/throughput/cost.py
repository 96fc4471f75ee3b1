"""The cost of measuring the speed of a published model: the time its recipe gives it."""

from crate.tasks.cost import KindCost

COST = KindCost()
