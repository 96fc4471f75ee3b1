"""White-box transformers and their baselines. Importing this package does not import torch."""

from crate.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
