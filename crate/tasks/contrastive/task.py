"""Contrastive training on images and captions: CLIP (arXiv 2103.00020), CLIPA (2305.07017)."""

import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.checkpoints.convert import convert_text, manifest, place, read, verify
from crate.data.augment import normalise
from crate.data.captions import caption_tokenizer
from crate.data.catalogue import get_dataset
from crate.data.datasets import PairSet
from crate.data.pairs import Pairs, open_pairs
from crate.environment import EXPERIMENTS, open_clip_part
from crate.errors import RunError, UsageError
from crate.models.build import build_contrastive
from crate.models.contrastive import ContrastiveModel
from crate.models.flops_contrastive import image_macs, text_macs
from crate.models.transfer import transfer_weights
from crate.records import RunFolder, read_json
from crate.runtime import Runtime, generator_for, seed_for
from crate.tasks.base import Resolved
from crate.tasks.contrastive.recipe import Contrastive
from crate.training.loop import fit, read_weights, save_weights


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
        parent: weights of a contrastive model to start from; None starts anew, the text tower from
            the official file that the recipe names, if any.

    Returns:
        metrics (contrastive_loss in nats and image_to_text, the % of images whose nearest caption
        reads as their own, both over the evaluated pairs in batches of `evaluation_batch`; FLOPs of
        one pair's forward pass, and of training since the chain's start) and details for run.json.
    """
    recipe, seed = resolved.recipe, resolved.run.seed
    dataset = get_dataset(recipe.dataset)
    encode = caption_tokenizer(recipe.tokenizer, recipe.context_length, data_root)
    torch.manual_seed(seed_for(seed, "init", *resolved.run.chain))
    model = build_contrastive(
        resolved.spec,
        image_size=recipe.image_size,
        vocab_size=encode.vocab_size,
        context_length=recipe.context_length,
        drop_path=recipe.drop_path,
    )
    details: dict = {}
    if parent is not None:
        details["carried"] = transfer_weights(model, read_weights(parent), recipe.dont_load)
    elif recipe.text_tower:
        load_text_tower(model, recipe.text_tower, data_root)
    if recipe.freeze_text:
        model.freeze_text()
    model.to(runtime.device)

    opened = {
        "size": recipe.image_size,
        "encode": encode,
        "runtime": runtime,
        "data_root": data_root,
        "bad_pairs": recipe.bad_pairs,
    }
    evaluated = open_pairs(dataset, recipe.evaluate, **opened)
    updates = 0
    if recipe.trains:
        source = open_pairs(dataset, "train", held_out_for=recipe.evaluate, **opened)
        details["training_pairs"] = len(source)
        per_epoch = len(source) // recipe.batch_size
        updates = recipe.total_updates(per_epoch)
        if not per_epoch or not updates:
            raise UsageError(
                f"{resolved.run}: {len(source):,} pairs in batches of {recipe.batch_size:,} are not "
                "a single update"
            )

        def training_batches(first: int):
            for pixels, ids in source.training(recipe, seed, first, updates):
                yield normalise(pixels, dataset), ids

        details |= fit(
            model,
            loss=functools.partial(
                matching_loss, clip_loss=clip_loss(runtime), micro=recipe.compute.micro_batch
            ),
            batches=training_batches,
            steps_per_epoch=per_epoch,
            recipe=recipe,
            runtime=runtime,
            folder=folder,
            identity=identity,
            seed=seed,
            name=str(resolved.run),
            watch=lambda: evaluate(model, evaluated, recipe, dataset, runtime),
            size=len(source),
            unit="pairs",
            micro_batches=False,
        )
        skipped = torch.tensor(float(source.bad), device=runtime.device)
        details["bad_pairs"] = int(runtime.all_reduce_sum(skipped))  # since this process began
        if runtime.main and details["bad_pairs"]:
            print(f"{resolved.run}: {details['bad_pairs']:,} bad pairs skipped", file=sys.stderr)
    if runtime.main:
        save_weights(model, folder)
    images = 2 * image_macs(resolved.spec, image_size=recipe.image_size)
    texts = 2 * text_macs(resolved.spec, context_length=recipe.context_length)
    trained = 3 * images + (1 if recipe.freeze_text else 3) * texts
    before = read_json(parent.with_name("metrics.json"))["metrics"] if parent else {}
    return evaluate(model, evaluated, recipe, dataset, runtime) | {
        "pairs": len(evaluated),
        "flops": images + texts,
        "train_flops": before.get("train_flops", 0) + trained * updates * recipe.batch_size,
    }, details


def load_text_tower(model: ContrastiveModel, name: str, data_root: str | Path) -> None:
    """Start the text tower and the scale of the logits from an official file, `name`.

    Raises:
        UsageError: the manifest does not list it, or its text tower has other sizes.
        RunError: it is not here, or damaged.
    """
    known = manifest(EXPERIMENTS)
    if name not in known:
        raise UsageError(f"text_tower: {EXPERIMENTS / 'released.yaml'} does not list '{name}'")
    path = place(name, data_root)
    if not path.is_file():
        raise RunError(
            f"the text tower is not here: no {path}; download it from {known[name].source}"
        )
    verify(path, known[name])
    text = convert_text(read(path), model.spec, where=path)
    own = model.state_dict()
    for key, what in (
        ("text.token_embedding.weight", "tokens of vocabulary"),
        ("text.positions", "places for tokens"),
    ):
        theirs, ours = (each[key].shape[-2] for each in (text, own))
        if text[key].shape != own[key].shape:
            raise UsageError(f"{path}: has {theirs:,} {what}, and the recipe {ours:,}")
    model.load_state_dict(own | text)


def clip_loss(runtime: Runtime) -> nn.Module:
    """open_clip's loss over the pairs of all ranks: each rank's rows, with gradients to all."""
    return open_clip_part("loss").ClipLoss(
        local_loss=True,
        gather_with_grad=True,
        cache_labels=True,
        rank=runtime.rank,
        world_size=runtime.world,
    )


def matching_loss(
    network: nn.Module, batch: tuple[Tensor, ...], clip_loss: nn.Module, micro: int | None
) -> Tensor:
    """Mean cross-entropy of images among texts and texts among images, in float32."""
    images, texts, scale = network(*batch, micro)
    with torch.autocast(images.device.type, enabled=False):  # logits up to 100
        return clip_loss(images.float(), texts.float(), scale.float())


@torch.inference_mode()
def evaluate(
    model: ContrastiveModel, source: Pairs, recipe: Contrastive, dataset: PairSet, runtime: Runtime
) -> dict:
    """Loss and retrieval over all pairs of all ranks, in float32.

    Pairs are put into batches in a fixed random order, so that neighbours on disk do not meet, and
    whatever the number of ranks; what does not fill a batch is left out, unless it is all.
    """
    model.eval()
    count, place = len(source), runtime.rank
    images = torch.zeros(count, model.spec.embed_dim, device=runtime.device)
    texts = torch.zeros_like(images)
    ids = torch.zeros(count, recipe.context_length, dtype=torch.int64, device=runtime.device)
    most = min(recipe.compute.micro_batch or recipe.evaluation_batch, recipe.evaluation_batch)
    for pixels, captions in source.evaluation(recipe, most):
        places = slice(place, place + len(pixels) * runtime.world, runtime.world)
        images[places] = model.encode_image(normalise(pixels, dataset))
        texts[places] = model.encode_text(captions)
        ids[places] = captions
        place += len(pixels) * runtime.world
    images, texts, ids = (
        runtime.all_reduce_sum(each) for each in (images, texts, ids)
    )  # the others' are 0
    size = min(recipe.evaluation_batch, count)
    order = torch.randperm(count, generator=generator_for("pairs")).to(runtime.device)
    loss = hits = torch.zeros((), device=runtime.device)
    batches = order[: count // size * size].split(size)
    for chosen in batches:
        logits = model.scale() * images[chosen] @ texts[chosen].T  # (B, B)
        labels = torch.arange(size, device=runtime.device)
        loss = loss + (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        nearest = chosen[logits.argmax(dim=1)]
        hits = hits + (ids[nearest] == ids[chosen]).all(dim=1).float().mean()
    return {
        "contrastive_loss": round(loss.item() / len(batches), 6),
        "image_to_text": round(100 * hits.item() / len(batches), 6),
    }
