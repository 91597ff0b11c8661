"""A small network that tells strangers from the tasks of a training, kind by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEVEL = 0.05
"""Share of tasks like those of the training that are called unlike them."""
_WIDTH = 128
_FARTHEST = 10.0
"""Deviations of a feature beyond which the critic sees no difference."""
_EPOCHS, _BATCH, _RATE, _DECAY = 10, 128, 3e-3, 0.1
_FOUND, _LEAST_SHARE = 0.8, 0.1
"""Share of a kind of strangers that should be found, and the least share of the false alarms."""
_HELD_OUT = 4
"""One in so many tasks is not for training the critic but for what it can tell."""


def new_critic(inputs: int, kinds: int) -> nn.Sequential:
    """From what a critic sees to a score for each kind of stranger, untrained."""
    return nn.Sequential(
        nn.Linear(inputs, _WIDTH),
        nn.SiLU(),
        nn.Linear(_WIDTH, _WIDTH // 2),
        nn.SiLU(),
        nn.Linear(_WIDTH // 2, kinds),
    )


def looks(design: Tensor, white: Tensor) -> Tensor:
    """What the critic sees."""
    return torch.cat([design, white.clamp(-_FARTHEST, _FARTHEST)], -1)


def held_out(seen: Tensor) -> tuple[Tensor, Tensor]:
    """To train by, and to see what was learnt."""
    held = torch.arange(len(seen)) % _HELD_OUT == 0
    return seen[~held], seen[held]


def trained_critic(alike: Tensor, strangers: Sequence[Tensor], seed: int) -> nn.Sequential:
    """By logistic regression of each kind apart from the tasks of the training, weighted alike."""
    kinds = torch.arange(len(strangers))
    inputs = torch.cat([alike, *strangers])
    # Of no kind, or of which.
    sizes = torch.tensor([len(some) for some in strangers])
    kind = torch.cat([torch.full((len(alike),), -1), kinds.repeat_interleave(sizes)])
    labels = (kind[:, None] == kinds).float()
    weight = (kind[:, None] == -1) + labels * (len(alike) / sizes.clamp_min(1))
    steps = _EPOCHS * math.ceil(len(inputs) / _BATCH)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        critic = new_critic(inputs.shape[-1], len(strangers))
        optimiser = torch.optim.AdamW(critic.parameters(), weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        for _ in range(_EPOCHS):
            for chosen in torch.randperm(len(inputs)).split(_BATCH):
                loss = nn.functional.binary_cross_entropy_with_logits(
                    critic(inputs[chosen]), labels[chosen], weight[chosen]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return critic.requires_grad_(False)


def alarm_shares(alike: Tensor, strangers: Sequence[Tensor]) -> Tensor:
    """Of the false alarms, for the score of each kind: what it costs to find _FOUND of the kind.

    A kind that would cost more than LEVEL by itself has none, or it would hide the others.

    Args:
        alike: ``task x kind`` scores of tasks of the training.
        strangers: of each kind, the scores of its own strangers.
    """
    costs = torch.stack(
        [
            (usual > own.quantile(1 - _FOUND)).float().mean()
            for usual, own in zip(alike.mT, strangers, strict=True)
        ]
    )
    told = costs <= LEVEL
    if not told.any():
        told = costs == costs.min()
    costs = torch.where(told, costs.clamp_min(1e-6), 0.0)
    shares = costs / costs.sum()
    return torch.where(told, shares.clamp_min(_LEAST_SHARE), 0.0)
