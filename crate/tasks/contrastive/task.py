"""Contrastive training on images and captions: CLIP (arXiv 2103.00020), CLIPA (2305.07017)."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.checkpoints.convert import convert_text
from crate.checkpoints.manifest import checkpoint_path, manifest, verify
from crate.checkpoints.read import read_checkpoint
from crate.data.augment import normalise
from crate.data.captions import VOCABULARIES, caption_tokenizer
from crate.data.datasets import PairSet
from crate.data.pairs import Pairs, open_pairs
from crate.environment import EXPERIMENTS, open_clip_part
from crate.errors import RunError, UsageError
from crate.models.build import build_contrastive
from crate.models.contrastive import ContrastiveModel
from crate.records import RunFolder
from crate.runtime import Runtime, generator_for
from crate.tasks.base import Resolved
from crate.tasks.contrastive.cost import COST
from crate.tasks.contrastive.recipe import Contrastive
from crate.tasks.stage import TrainingStage
from crate.training.loop import Batch


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
        parent: weights of a contrastive model to start from; None: as initialised, with the text
            tower of the official file that the recipe names, if any.

    Returns:
        metrics (contrastive_loss in nats; image_to_text, the % of images whose nearest caption has
        the same tokens as their own; both over the evaluated pairs in batches of
        `evaluation_batch`; FLOPs of one pair's forward pass, and of training since the chain's
        start) and details for run.json.
    """
    return STAGE(resolved, runtime, data_root).train(folder, identity, parent)


class ContrastiveStage(TrainingStage):
    COST = COST
    WATCHED = ("contrastive_loss", "image_to_text")
    UNIT = "pairs"
    MICRO_BATCHES = False  # each image is compared with all texts of the batch

    def open(self) -> None:
        recipe = self.recipe
        self.encode = caption_tokenizer(recipe.tokenizer, recipe.context_length, self.data_root)
        self.evaluated = self._open(recipe.evaluate)

    def _open(self, split: str, **options: str) -> Pairs:
        return open_pairs(
            self.dataset,
            split,
            size=self.recipe.image_size,
            encode=self.encode,
            runtime=self.runtime,
            data_root=self.data_root,
            bad_pairs=self.recipe.bad_pairs,
            **options,
        )

    def build(self) -> ContrastiveModel:
        return build_contrastive(
            self.spec,
            image_size=self.recipe.image_size,
            vocab_size=VOCABULARIES[self.recipe.tokenizer],
            context_length=self.recipe.context_length,
            drop_path=self.recipe.drop_path,
        )

    def start(self, weights: dict[str, Tensor] | None) -> tuple[nn.Module, dict | None]:
        model, transferred = super().start(weights)
        if weights is None and self.recipe.text_tower:
            load_text_tower(model, self.recipe.text_tower, self.data_root)
        return model, transferred

    def prepare(self, model: ContrastiveModel) -> ContrastiveModel:
        if self.recipe.freeze_text:
            model.freeze_text()
        return model

    def open_training(self) -> Pairs:
        self.source = self._open("train", held_out_for=self.recipe.evaluate)
        return self.source

    def describe(self, source: Pairs) -> dict:
        return {"training_pairs": len(source)}

    def details(self) -> dict:
        """The number of invalid pairs that this process skipped."""
        if not self.recipe.trains:
            return {}
        skipped = torch.tensor(float(self.source.bad), device=self.runtime.device)
        bad = int(self.runtime.all_reduce_sum(skipped))
        if self.runtime.main and bad:
            print(f"{self.run}: {bad:,} invalid pairs skipped", file=sys.stderr)
        return {"bad_pairs": bad}

    def batches(self, source: Pairs, first: int, last: int) -> Iterator[Batch]:
        for pixels, ids in source.training(self.recipe, self.seed, first, last):
            yield normalise(pixels, self.dataset), ids

    @functools.cached_property
    def clip_loss(self) -> nn.Module:
        """open_clip's loss over the pairs of all ranks; gradients reach all ranks' features."""
        return open_clip_part("loss").ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=self.runtime.rank,
            world_size=self.runtime.world,
        )

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of images among texts and texts among images, in float32."""
        images, texts, scale = network(*batch, self.recipe.compute.micro_batch)
        with torch.autocast(images.device.type, enabled=False):  # logits up to 100
            return self.clip_loss(images.float(), texts.float(), scale.float())

    def measure(self) -> dict:
        return evaluate(self.model, self.evaluated, self.recipe, self.dataset, self.runtime)

    def finish(self, metrics: dict, folder: RunFolder) -> dict:
        return metrics | {"pairs": len(self.evaluated)}

    def evaluation_batch(self, model: nn.Module) -> int:
        most = self.recipe.evaluation_batch
        return min(self.recipe.compute.micro_batch or most, most)

    def random_batch(self, model: nn.Module, count: int) -> Batch:
        vocabulary, length = VOCABULARIES[self.recipe.tokenizer], self.recipe.context_length
        ids = torch.randint(1, vocabulary, (count, length), device=self.runtime.device)
        return self.random_images(count), ids

    def evaluate_batch(self, model: ContrastiveModel, batch: Batch) -> object:
        images, ids = batch
        return model.encode_image(images), model.encode_text(ids)


STAGE = ContrastiveStage


def load_text_tower(model: ContrastiveModel, name: str, data_root: str | Path) -> None:
    """Initialise the text tower and the scale of the logits from the official file `name`.

    Raises:
        UsageError: the manifest does not list the file, or its text tower has other sizes.
        RunError: the file is missing or damaged.
    """
    known = manifest(EXPERIMENTS)
    if name not in known:
        raise UsageError(f"text_tower: {EXPERIMENTS / 'released.yaml'} does not list '{name}'")
    path = checkpoint_path(name, data_root)
    if not path.is_file():
        raise RunError(
            f"{path}: the text tower's file is missing; download it from {known[name].source}"
        )
    verify(path, known[name])
    text = convert_text(read_checkpoint(path), model.spec, where=path)
    own = model.state_dict()
    for key, what in (
        ("text.token_embedding.weight", "tokens of vocabulary"),
        ("text.positions", "places for tokens"),
    ):
        theirs, ours = (each[key].shape[-2] for each in (text, own))
        if text[key].shape != own[key].shape:
            raise UsageError(f"{path}: has {theirs:,} {what}, but the recipe needs {ours:,}")
    model.load_state_dict(own | text)


@torch.inference_mode()
def evaluate(
    model: ContrastiveModel, source: Pairs, recipe: Contrastive, dataset: PairSet, runtime: Runtime
) -> dict:
    """Loss and retrieval over all pairs of all ranks, in float32.

    Batches follow a fixed random order, independent of the number of ranks, so that neighbours on
    disk are in different batches. The incomplete last batch is left out, unless it is the only one.
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
    )  # the rows of other ranks are 0
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
