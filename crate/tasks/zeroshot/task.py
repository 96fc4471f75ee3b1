"""Zero-shot classification: the class whose text is nearest to an image (arXiv 2103.00020)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate.data.captions import VOCABULARIES, caption_tokenizer, class_names, phrases
from crate.data.catalogue import get_dataset
from crate.data.images import open_split
from crate.errors import RunError
from crate.models.build import build_contrastive
from crate.models.contrastive import ContrastiveModel
from crate.models.initial import PairedDraws
from crate.models.transfer import transfer_weights
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.classification.task import evaluate
from crate.tasks.frozen import Work, noise_evaluation, precision
from crate.tasks.stage import EVALUATION_BATCH
from crate.weights import read_weights

TEMPERATURE = 0.01  # of class probabilities: cosines times 100, as in CLIP's and CLIPA's code


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: str | Path,
) -> tuple[dict, dict]:
    """Classify a split by the names of its classes; no weights are saved.

    Args:
        parent: weights of a contrastive model; None: as initialised, the control.

    Returns:
        metrics, those of `classification.task.evaluate`, and details for run.json.

    Raises:
        UsageError: the data set has no names of classes.
        RunError: the weights were trained with another tokenizer.
    """
    recipe, run_ = resolved.recipe, resolved.run
    dataset = get_dataset(recipe.dataset)
    names = class_names(dataset)
    encode = caption_tokenizer(recipe.tokenizer, recipe.context_length, data_root)
    opened = {"size": recipe.image_size, "runtime": runtime, "data_root": data_root}
    pictures = open_split(dataset, recipe.evaluate, **opened)
    with PairedDraws(run_.seed):
        model = _network(resolved)
    if parent is not None:
        weights = read_weights(parent)
        rows = len(weights.get("text.token_embedding.weight", ()))
        if rows and rows != encode.vocab_size:
            raise RunError(
                f"{run_}: the text tower has {rows:,} tokens and the tokenizer "
                f"'{recipe.tokenizer}' {encode.vocab_size:,}; set the tokenizer of its training"
            )
        transfer_weights(model, weights, [])
    model.to(runtime.device).eval()
    most = _at_once(resolved)
    with torch.inference_mode(), precision(recipe, runtime.device):
        texts = class_features(model, names, phrases(recipe.templates), encode, most)
        batches = pictures.evaluation(recipe, most)
        metrics = evaluate(Classifier(model, texts), batches, dataset, runtime)
    return metrics, {"phrases": len(phrases(recipe.templates))}


class Classifier(nn.Module):
    """Images (B, 3, S, S) to logits (B, classes): cosines with class embeddings (classes, e)."""

    def __init__(self, model: ContrastiveModel, texts: Tensor):
        super().__init__()
        self.model, self.texts = model, texts

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images) @ self.texts.T / TEMPERATURE


def class_features(
    model: ContrastiveModel, names: list[str], templates: list[str], encode, most: int
) -> Tensor:
    """One unit vector a class, (classes, e): the mean over templates of its name's embeddings.

    encode: texts to ids (n, T). most: texts embedded at once.
    """
    device = model.logit_scale.device
    features = []
    for name in names:
        ids = torch.from_numpy(encode([template.format(name) for template in templates]))
        parts = [model.encode_text(part.to(device)) for part in ids.split(most)]
        features.append(torch.cat(parts).mean(dim=0))
    return F.normalize(torch.stack(features), dim=1)


def _network(resolved: Resolved) -> ContrastiveModel:
    recipe = resolved.recipe
    return build_contrastive(
        resolved.spec,
        image_size=recipe.image_size,
        vocab_size=VOCABULARIES[recipe.tokenizer],
        context_length=recipe.context_length,
    )


def _at_once(resolved: Resolved) -> int:
    """Images evaluated at once."""
    return min(resolved.recipe.compute.micro_batch or EVALUATION_BATCH, EVALUATION_BATCH)


# --- for `crate bench` -----------------------------------------------------------


def evaluation_work(resolved: Resolved, runtime: Runtime) -> tuple[Work, int]:
    """The evaluation of noise images, and a run's batch size."""
    model = _network(resolved).to(runtime.device).eval()
    return noise_evaluation(model.encode_image, resolved.recipe, runtime), _at_once(resolved)
