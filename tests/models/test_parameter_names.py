"""Names of parameters that are known without a network are those of the network."""

import pytest
import torch

from crate.models.build import build, build_autoencoder, build_contrastive, build_language
from crate.models.parameter_names import has_parameter, parameter_names
from crate.models.zoo import MODELS, resolve

BUILDERS = {
    "vision": (build, {"num_classes": 2}),
    "language": (build_language, {"vocab_size": 9, "block_size": 4}),
    "autoencoder": (build_autoencoder, {}),
    "contrastive": (build_contrastive, {"vocab_size": 9, "context_length": 4}),
}
FAMILIES = {name.split("_patch")[0].rstrip("0123456789"): name for name in MODELS}


@pytest.mark.parametrize("name", sorted(FAMILIES.values()))
def test_every_parameter_is_known_and_no_other(name):
    spec = resolve(name)
    for kind in dict.fromkeys([spec.kind, "vision"] if spec.kind != "language" else ["language"]):
        builder, sizes = BUILDERS[kind]
        sizes = sizes | ({} if kind == "language" else {"image_size": spec.patch_size})
        with torch.device("meta"):
            own = list(builder(spec, **sizes).state_dict())
        modules = {".".join(key.split(".")[:k]) for key in own for k in range(1, 9)}
        assert all(has_parameter(key, spec, kind) for key in {*own, *modules})
        unfounded = [known for known in parameter_names(spec, kind) if known not in modules]
        assert unfounded == []


@pytest.mark.parametrize(
    "name",
    [
        "hed", "blocks.12", "blocks.x", "blocks.0.norm3", "blocks.0.norm1.scale", "head.weight.x",
        "patch_embedding.norm1", "class_token.weight", "", "decoder_norm", "block", "blocks.0.att",
    ],
)  # fmt: skip
def test_other_names_are_not(name):
    assert not has_parameter(name, resolve("crate_alpha_base_patch16"), "vision")
