"""Optimisers, learning-rate schedule and weight-decay groups."""

import math

import torch
from torch import nn
from torch.optim.adamw import adamw

from crate.config import Training


class AdamW:
    """AdamW (Loshchilov & Hutter 2019), torch's own update without torch's optimiser class.

    `torch.optim.Optimizer` imports the compiler when it is first used, several seconds that each
    short run would pay; the functional form does not. Tested equal to `torch.optim.AdamW`.
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


def decay_groups(model: nn.Module, step: Training) -> list[dict]:
    """Parameter groups with and without weight decay.

    `kernels` decays the weights of linear and convolution layers only, as CRATE-alpha's mask
    `.*/kernel$`: not its dictionaries, positions, class token, norms or biases.
    """
    kernels = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if step.decay == "all" or id(p) in kernels]
    rest = [p for p in trained if step.decay != "all" and id(p) not in kernels]
    return [
        {"params": decayed, "weight_decay": step.weight_decay, "lr": step.lr},
        {"params": rest, "weight_decay": 0.0, "lr": step.lr},
    ]


def make_optimizer(model: nn.Module, step: Training):
    groups = [group for group in decay_groups(model, step) if group["params"]]
    if step.optimizer == "lion":
        from lion_pytorch import Lion  # Chen et al. 2023

        return Lion(groups, lr=step.lr, betas=tuple(step.betas))
    return AdamW(groups, betas=step.betas, eps=step.eps)


def learning_rate(step: Training, index: int, *, total: int, warmup: int) -> float:
    """Rate of update `index` (from 0): linear warm-up, then cosine to `min_lr` at the end."""
    if index < warmup:
        return step.lr * (index + 1) / warmup
    share = (index - warmup) / max(1, total - warmup)
    return step.min_lr + 0.5 * (step.lr - step.min_lr) * (1 + math.cos(math.pi * share))
