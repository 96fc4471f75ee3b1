"""White-box transformers and their baselines; their features, objective, FLOPs and probes.

May import layers and the ground.

Importing this package does not import torch.
"""

from crate.models.build import create_model
from crate.models.zoo import list_models

__all__ = ["create_model", "list_models"]
