"""The cost of contrastive training: both towers."""

from crate.data.captions import VOCABULARIES
from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost


class ContrastiveCost(TrainingCost):
    FORWARD = ("image_size", "context_length", "tokenizer")
    TRAINING = (*TrainingCost.TRAINING, "freeze_text")

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        parameters, macs = towers(resolved)
        return parameters, macs + text_macs(resolved)

    def training_flops(self, resolved: Resolved) -> int:
        whole = super().training_flops(resolved)
        if resolved.recipe.freeze_text:  # no backward pass through the texts
            whole -= 2 * 2 * text_macs(resolved)
        return whole


def towers(resolved: Resolved) -> tuple[int, int]:
    """Parameters of both towers, and MACs of one image."""
    recipe, spec = resolved.recipe, resolved.spec
    return (
        flops.contrastive_parameter_count(
            spec,
            image_size=recipe.image_size,
            context_length=recipe.context_length,
            vocab_size=VOCABULARIES[recipe.tokenizer],
        ),
        flops.image_macs(spec, image_size=recipe.image_size),
    )


def text_macs(resolved: Resolved) -> int:
    """MACs of one text."""
    length = resolved.recipe.context_length
    return flops.text_macs(resolved.spec, context_length=length)


COST = ContrastiveCost()
