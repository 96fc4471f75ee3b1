"""The cost of segmentation by self-attention: up to the block that is used."""

from crate.tasks.objects.cost import BlockCost

COST = BlockCost()
