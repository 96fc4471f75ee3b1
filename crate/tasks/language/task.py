"""Language models: trained on a text, evaluated on a whole split of it or of another."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.texts import Tokens, open_tokens
from crate.data.tokenizer import get_tokenizer
from crate.errors import UsageError
from crate.models import ngram
from crate.models.build import build_language
from crate.models.language import LanguageModel
from crate.records import RunFolder
from crate.runtime import Runtime, generator_for
from crate.tasks.base import Resolved
from crate.tasks.language.cost import COST
from crate.tasks.language.recipe import Language
from crate.tasks.stage import TrainingStage, warn_odd_count
from crate.training.loop import Batch, Examples
from crate.weights import read_weights, save_tensors

# Without `micro_batch`, as many windows are evaluated at once as have this many logits.
EVALUATION_LOGITS = 2**26

# Fills the last window after the last token; ignored as a target.
PADDING = -100


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Train (unless its length is 0) and evaluate one model; saves its weights in `folder`.

    Args:
        parent: weights to start from, or a control's counts to evaluate; None: as initialised.

    Returns:
        metrics (cross-entropy in nats a token, and bits a byte of text, over the whole evaluated
        split after the last update; its documents; its tokens except the first, which is not
        predicted; FLOPs of the forward pass of one window of `block_size` tokens, and of training
        since the chain's start, three forward passes a window) and details for run.json.
    """
    stage = STAGE(resolved, runtime, data_root)
    counted = None
    if parent is not None:
        tensors = read_weights(parent)
        counted = ngram.from_state({name: t.numpy() for name, t in tensors.items()})
    if counted is None and resolved.recipe.predictor == "model":
        return stage.train(folder, identity, parent)
    return stage.count(counted, folder)


class LanguageStage(TrainingStage):
    COST = COST
    WATCHED = ("cross_entropy",)
    UNIT = "tokens"

    def open(self) -> None:
        self.evaluated = open_tokens(self.dataset, self.recipe.evaluate, self.data_root)
        lengths = self.evaluated.tokenizer.lengths
        if not lengths[self.evaluated.ids[1:]].any():
            raise UsageError(
                f"{self.run}: {self.evaluated.title} has no text after its first token"
            )

    def build(self) -> LanguageModel:
        return build_language(
            self.spec,
            vocab_size=get_tokenizer(self.dataset.tokenizer).vocab_size,
            block_size=self.recipe.block_size,
            drop_path=self.recipe.drop_path,
        )

    def open_training(self) -> Tokens:
        held_out_for = self.recipe.evaluate
        return open_tokens(self.dataset, "train", self.data_root, held_out_for=held_out_for)

    def describe(self, source: Tokens) -> dict:
        warn_odd_count(self.dataset, source.documents, self.runtime)
        return {
            "training_documents": source.documents,
            "training_tokens": len(source.ids),
            "training_sha256": source.sha256,
        }

    def details(self) -> dict:
        return {"evaluated_sha256": self.evaluated.sha256}  # of token files

    def examples(self, source: Tokens) -> Examples:
        recipe, size = self.recipe, len(source.ids)
        if size <= recipe.block_size:
            raise UsageError(
                f"{self.run}: {source.title} has {size:,} tokens to train on, one window needs "
                f"{recipe.block_size + 1:,}"
            )
        per_epoch = max(1, size // (recipe.batch_size * recipe.block_size))
        updates = recipe.total_updates(per_epoch)
        if not updates:
            raise UsageError(f"{self.run}: {recipe.epochs} epochs are not a single update")
        return Examples(
            batches=lambda first: self.batches(source, first, updates),
            size=size,
            per_epoch=per_epoch,
            unit=self.UNIT,
            per_example=recipe.block_size,
        )

    def batches(self, source: Tokens, first: int, last: int) -> Iterator[Batch]:
        updates = range(first, last)
        return training_windows(source.ids, self.recipe, self.seed, updates, self.runtime)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return next_token_loss(network, batch)

    def measure(self) -> dict:
        lost = evaluate(self.model, self.evaluated.ids, self.recipe, self.runtime)
        return scores(lost, self.evaluated)

    def count(self, counted: ngram.Ngram | None, folder: RunFolder) -> tuple[dict, dict]:
        """Evaluate a control. counted: its parent's counts; None counts the training split."""
        self.open()
        details = self.details()
        if self.recipe.predictor != "model":
            source = self.open_training()
            details |= self.describe(source)
            vocabulary = self.evaluated.tokenizer.vocab_size
            order = 1 if self.recipe.predictor == "unigram" else 2
            counted = ngram.count(source.ids, vocabulary, order)
            if self.runtime.main:
                state = {name: torch.from_numpy(array) for name, array in counted.state().items()}
                save_tensors(state, folder.weights)
        lost = -float(counted.log_probabilities(self.evaluated.ids).sum())
        return scores(lost, self.evaluated) | {"flops": 0, "train_flops": 0}, details

    def evaluation_batch(self, model: LanguageModel) -> int:
        return windows_at_once(model, self.recipe)

    def random_batch(self, model: LanguageModel, count: int) -> Batch:
        vocabulary = model.token_embedding.num_embeddings
        shape = (count, self.recipe.block_size + 1)
        ids = torch.randint(vocabulary, shape, device=self.runtime.device)
        return ids[:, :-1], ids[:, 1:]

    def evaluate_batch(self, model: nn.Module, batch: Batch) -> Tensor:
        ids, targets = batch
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


STAGE = LanguageStage


def training_windows(
    ids: np.ndarray, recipe: Language, seed: int, updates: range, runtime: Runtime
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's windows of each update, and their next tokens: both (B, block_size) int64.

    As in nanoGPT, a window begins anywhere in the text and may span documents.
    """
    last = len(ids) - recipe.block_size  # starts; one more token is the last target
    within = np.arange(recipe.block_size + 1)
    for index in updates:
        generator = generator_for(seed, "windows", index)
        starts = torch.randint(last, (recipe.batch_size,), generator=generator)
        mine = runtime.shard(starts).numpy()
        windows = torch.from_numpy(ids[mine[:, None] + within].astype(np.int64))
        if runtime.device.type == "cuda":
            windows = windows.pin_memory().to(runtime.device, non_blocking=True)
        yield windows[:, :-1], windows[:, 1:]


def next_token_loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropy of the next token in nats, the mean over all tokens of a batch (B, T)."""
    ids, targets = batch
    return F.cross_entropy(network(ids).float().flatten(0, 1), targets.flatten())


# --- evaluation -----------------------------------------------------------


@torch.inference_mode()
def evaluate(model: nn.Module, ids: np.ndarray, recipe: Language, runtime: Runtime) -> float:
    """Cross-entropy in nats, summed over all tokens except the first, over all ranks, in float32.

    The text is cut into disjoint windows of `block_size`: each token is predicted once, from the
    tokens before it in its window, which on average are as many as in training.
    """
    model.eval()
    size = recipe.block_size
    count = -(-(len(ids) - 1) // size)  # windows, the last one possibly shorter
    most = windows_at_once(model, recipe)
    lost = torch.zeros((), dtype=torch.float64, device=runtime.device)
    mine = np.arange(count)[runtime.rank :: runtime.world]
    for start in range(0, len(mine), most):
        places = mine[start : start + most, None] * size + np.arange(size + 1)
        windows = torch.from_numpy(ids[np.minimum(places, len(ids) - 1)].astype(np.int64))
        beyond = torch.from_numpy(places[:, 1:] >= len(ids))
        targets = windows[:, 1:].masked_fill(beyond, PADDING).to(runtime.device)
        logits = model(windows[:, :-1].to(runtime.device))
        lost += F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="sum"
        ).double()
    return float(runtime.all_reduce_sum(lost))


def windows_at_once(model: LanguageModel, recipe: Language) -> int:
    """Windows that are evaluated at once."""
    logits = recipe.block_size * model.token_embedding.num_embeddings
    return recipe.compute.micro_batch or max(1, EVALUATION_LOGITS // logits)


def scores(lost: float, evaluated: Tokens) -> dict:
    """Metrics from the summed nats of all tokens of a text except the first.

    Bits a byte compare across tokenizers. An end-of-text token costs bits and has 0 bytes.
    """
    targets = evaluated.ids[1:]
    held = int(np.bincount(targets, minlength=1) @ evaluated.tokenizer.lengths[: targets.max() + 1])
    return {
        "cross_entropy": round(lost / len(targets), 6),
        "bits_per_byte": round(lost / math.log(2) / held, 6),
        "tokens": len(targets),
        "documents": evaluated.documents,
    }
