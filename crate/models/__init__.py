"""White-box transformers and their baselines, and what is read off them.

May import layers and the ground.

Importing this package does not import torch.
"""

from crate.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
