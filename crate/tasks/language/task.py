"""Language models: trained on one text, evaluated on the whole of it or of another."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.catalogue import get_dataset
from crate.data.datasets import TextSet, odd_count
from crate.data.texts import Tokens, open_tokens
from crate.errors import UsageError
from crate.models import ngram
from crate.models.flops import language_macs
from crate.models.language import LanguageModel
from crate.models.transfer import transfer_weights
from crate.records import RunFolder, read_json
from crate.runtime import Runtime, generator_for, seed_for
from crate.tasks.base import Resolved
from crate.tasks.language.recipe import Language
from crate.training.loop import fit, read_weights, save_tensors, save_weights

# Windows evaluated together, without `micro_batch`: as many as have this many logits.
EVALUATION_LOGITS = 2**26

# Fills a window after the last token; never a target that counts.
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
    """Train (if the recipe asks for it) and evaluate one model; weights are left in `folder`.

    Args:
        parent: weights to start from, or a control's counts to evaluate; None starts anew.

    Returns:
        metrics (cross-entropy in nats a token, and bits a byte of text, over the whole evaluated
        split after the last update; its documents, and its tokens but the first, which nothing
        comes before; FLOPs of the forward pass of one window of `block_size` tokens, and of
        training since the chain's start, three forward passes a window) and details for run.json.
    """
    recipe, seed, dataset = resolved.recipe, resolved.run.seed, get_dataset(resolved.recipe.dataset)
    evaluated = open_tokens(dataset, recipe.evaluate, data_root)  # first: it must not fail later
    vocabulary = evaluated.tokenizer.vocab_size
    if not evaluated.tokenizer.lengths[evaluated.ids[1:]].any():
        raise UsageError(f"{resolved.run}: {evaluated.title} has no text after its first token")

    weights = None if parent is None else read_weights(parent)
    counted = weights and ngram.from_state({name: t.numpy() for name, t in weights.items()})
    details: dict = {"evaluated_sha256": evaluated.sha256}  # of token files
    if recipe.predictor != "model":
        source = open_training(dataset, recipe, data_root, runtime, details)
        counted = ngram.count(source.ids, vocabulary, 1 if recipe.predictor == "unigram" else 2)
        if runtime.main:
            state = {name: torch.from_numpy(array) for name, array in counted.state().items()}
            save_tensors(state, folder.weights)
    if counted is not None:
        lost = -float(counted.log_probabilities(evaluated.ids).sum())
        return scores(lost, evaluated) | {"flops": 0, "train_flops": 0}, details

    torch.manual_seed(seed_for(seed, "init", *resolved.run.chain))
    model = LanguageModel(
        resolved.spec,
        vocab_size=vocabulary,
        block_size=recipe.block_size,
        drop_path=recipe.drop_path,
    )
    if weights is not None:
        details["carried"] = transfer_weights(model, weights, recipe.dont_load)
    model.to(runtime.device)

    def measure() -> dict:
        return scores(evaluate(model, evaluated.ids, recipe, runtime), evaluated)

    updates = 0
    if recipe.trains:
        source = open_training(dataset, recipe, data_root, runtime, details)
        if len(source.ids) <= recipe.block_size:
            raise UsageError(
                f"{resolved.run}: {source.title} has {len(source.ids):,} tokens to train on, one "
                f"window needs {recipe.block_size + 1:,}"
            )
        per_epoch = max(1, len(source.ids) // (recipe.batch_size * recipe.block_size))
        updates = recipe.total_updates(per_epoch)
        if not updates:
            raise UsageError(f"{resolved.run}: {recipe.epochs} epochs are not a single update")
        details |= fit(
            model,
            loss=next_token_loss,
            batches=lambda first: training_windows(
                source.ids, recipe, seed, range(first, updates), runtime
            ),
            steps_per_epoch=per_epoch,
            recipe=recipe,
            runtime=runtime,
            folder=folder,
            identity=identity,
            seed=seed,
            name=str(resolved.run),
            watch=lambda: {"cross_entropy": measure()["cross_entropy"]},
            size=len(source.ids),
            unit="tokens",
            per_example=recipe.block_size,
        )
    if runtime.main:
        save_weights(model, folder)
    forward = 2 * language_macs(resolved.spec, vocab_size=vocabulary, tokens=recipe.block_size)
    before = read_json(parent.with_name("metrics.json"))["metrics"] if parent else {}
    trained = before.get("train_flops", 0) + 3 * forward * updates * recipe.batch_size
    return measure() | {"flops": forward, "train_flops": trained}, details


def open_training(
    dataset: TextSet, recipe: Language, data_root: str | Path, runtime: Runtime, details: dict
) -> Tokens:
    """The text to train on, or to count; its size goes into `details`."""
    source = open_tokens(dataset, "train", data_root, held_out_for=recipe.evaluate)
    if runtime.main and (warning := odd_count(dataset, source.documents)):
        print(f"warning: {warning}", file=sys.stderr)
    details |= {"training_documents": source.documents, "training_tokens": len(source.ids)}
    details["training_sha256"] = source.sha256
    return source


def training_windows(
    ids: np.ndarray, recipe: Language, seed: int, updates: range, runtime: Runtime
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's windows of each update, and the tokens that follow: both (B, block_size) int64.

    Each begins anywhere in the text, documents run into each other: nanoGPT's batches.
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
    """Nats of all tokens but the first, over all ranks, in float32.

    The text is cut into windows of `block_size` that share no token: each token is predicted once,
    from those before it in its window, as many as a training batch has on average.
    """
    model.eval()
    size = recipe.block_size
    count = -(-(len(ids) - 1) // size)  # windows, the last one possibly shorter
    most = recipe.compute.micro_batch or max(
        1, EVALUATION_LOGITS // (size * model.token_embedding.num_embeddings)
    )
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


def scores(lost: float, evaluated: Tokens) -> dict:
    """Metrics from the nats of all tokens of a text but the first.

    Bits a byte compare across tokenizers: ends of text cost bits and are no bytes.
    """
    targets = evaluated.ids[1:]
    held = int(np.bincount(targets, minlength=1) @ evaluated.tokenizer.lengths[: targets.max() + 1])
    return {
        "cross_entropy": round(lost / len(targets), 6),
        "bits_per_byte": round(lost / math.log(2) / held, 6),
        "tokens": len(targets),
        "documents": evaluated.documents,
    }
