"""White-box transformers and their baselines, and what is read off them.

May import layers and the ground.

Importing this package does not import torch.
"""

from crate.models.build import create_model
from crate.models.zoo import list_models

__all__ = ["create_model", "list_models"]
