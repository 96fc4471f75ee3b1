"""Optimizers, learning-rate schedule and weight-decay groups."""

import math
import re

import torch
from torch import nn
from torch.optim.adamw import adamw

from crate.recipes import Training


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by torch's functional form.

    `torch.optim.Optimizer` imports the compiler when first used, which takes several seconds; the
    functional form does not. Tested equal to `torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict], *, betas: list[float], eps: float):
        self.param_groups = groups
        self.betas, self.eps = betas, eps
        self.state = [
            [(torch.zeros_like(p), torch.zeros_like(p), torch.tensor(0.0)) for p in g["params"]]
            for g in groups
        ]

    @torch.no_grad()
    def step(self) -> None:
        for group, states in zip(self.param_groups, self.state, strict=True):
            live = [
                (p, *s) for p, s in zip(group["params"], states, strict=True) if p.grad is not None
            ]
            if not live:
                continue
            params, means, squares, steps = map(list, zip(*live, strict=True))
            adamw(
                params,
                [p.grad for p in params],
                means,
                squares,
                [],
                steps,
                foreach=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )

    def state_dict(self) -> dict:
        return {"state": self.state}

    def load_state_dict(self, saved: dict) -> None:
        for group, old in zip(self.state, saved["state"], strict=True):
            for mine, theirs in zip(group, old, strict=True):
                for tensor, value in zip(mine, theirs, strict=True):
                    tensor.copy_(value)


TOKENS = ("positions", "class_token", "mask_token")


def parameter_groups(model: nn.Module, recipe: Training) -> list[dict]:
    """Group parameters by weight decay and by `scale`, the factor of their learning rate.

    decay "all"       all parameters decay
    decay "kernels"   weights of linear and convolution layers decay, as CRATE-alpha's mask
                      `.*/kernel$`: not dictionaries, positions, class token, norms or biases
    decay "matrices"  parameters with two or more dimensions decay, dictionaries too, but not
                      positions, class and mask token, as in BEiT's fine-tuning (arXiv 2106.08254)
    layer_decay       BEiT's: the learning rate falls by this factor with each block, counted from
                      the head (factor 1) to stem, positions and tokens; an autoencoder's decoder
                      blocks are numbered as its encoder's
    """
    kernels = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    depth = max((_block(name) or 0 for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = {
            "all": True,
            "kernels": id(parameter) in kernels,
            "matrices": parameter.dim() > 1 and name.split(".")[-1] not in TOKENS,
        }[recipe.decay]
        block = _block(name)
        above = depth + 1 - (depth + 1 if block is None else block)
        groups.setdefault((decays, recipe.layer_decay**above), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr": recipe.lr,
            "scale": scale,
        }
        for (decays, scale), parameters in sorted(groups.items(), reverse=True, key=lambda g: g[0])
    ]


def _block(name: str) -> int | None:
    """The block of a parameter, from 1; 0 below the first block, None above the last."""
    match = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if match:
        return int(match[1]) + 1
    below = {"patch_embedding", *TOKENS} & set(name.split("."))
    return 0 if below else None


def make_optimizer(model: nn.Module, recipe: Training):
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "lion":
        from lion_pytorch import Lion  # Chen et al. 2023

        return Lion(groups, lr=recipe.lr, betas=tuple(recipe.betas))
    return AdamW(groups, betas=recipe.betas, eps=recipe.eps)


def learning_rate(recipe: Training, index: int, per_epoch: float) -> float:
    """Learning rate of update `index` (from 0), with `per_epoch` updates an epoch.

    schedule "cosine", "linear"   linear warm-up to `lr`, then a cosine or a line to `min_lr`
    schedule "cosine_by_epoch"    that of CRATE's code (2023, main.py), constant within an epoch:
                                  the smaller of the warm-up and a cosine that begins with it
    """
    if recipe.schedule == "cosine_by_epoch":
        epoch = int(index / per_epoch)
        warm = (epoch + 1) / recipe.warmup_epochs if recipe.warmup_epochs else 1.0
        return recipe.lr * min(warm, 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs)))
    total, warmup = recipe.total_updates(per_epoch), recipe.warmup(per_epoch)
    if index < warmup:
        return recipe.lr * (index + (not recipe.warmup_from_zero)) / warmup
    share = (index - warmup) / max(1, total - warmup)
    if recipe.schedule == "linear":
        return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 - share)
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * share))
