"""The cost of segmentation by self-attention: the network up to the block that is used."""

from crate.tasks.objects.cost import BlockCost

COST = BlockCost()
