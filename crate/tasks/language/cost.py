"""The cost of language modelling; an example is a window of `block_size` tokens."""

from crate.data.catalogue import get_dataset
from crate.data.tokenizer import get_tokenizer
from crate.models import flops
from crate.tasks.base import Resolved
from crate.tasks.cost import TrainingCost


class LanguageCost(TrainingCost):
    FORWARD = ("block_size",)

    def complexity(self, resolved: Resolved) -> tuple[int, int]:
        return language_complexity(resolved)

    def sizes(self, resolved: Resolved) -> dict[str, int]:
        """Windows of each split; a split whose number of tokens is unknown is left out."""
        recipe = resolved.recipe
        tokens = get_dataset(recipe.dataset).tokens
        return {"train": 0} | {split: n // recipe.block_size for split, n in tokens.items()}

    def not_counted(self, resolved: Resolved) -> str:
        recipe = resolved.recipe
        if recipe.READS_DATA and recipe.evaluate not in get_dataset(recipe.dataset).tokens:
            return "evaluations on texts whose number of tokens is unknown"
        return ""


def language_complexity(resolved: Resolved, *, positions: bool = True) -> tuple[int, int]:
    """Parameters of a language model, and MACs of one window.

    positions: count the position embedding among the parameters.
    """
    spec, size = resolved.spec, resolved.recipe.block_size
    vocabulary = get_tokenizer(get_dataset(resolved.recipe.dataset).tokenizer).vocab_size
    return (
        flops.language_parameter_count(
            spec, vocab_size=vocabulary, block_size=size, positions=positions
        ),
        flops.language_macs(spec, vocab_size=vocabulary, tokens=size),
    )


COST = LanguageCost()
