"""Whether a task looks like those that a model was trained on.

What a task looks like is its embedding, and how far its observations are from the outputs that were
inferred. Three numbers say how strange that is: the Mahalanobis distance from simulated tasks (Lee
et al. 2018), the mean squared residual, and what a critic says, a small network that learnt to tell
simulated tasks from strangers: tasks of other priors, and corrupted ones (outlier exposure,
Hendrycks et al. 2019). It has a score for each kind of stranger, as one kind is hard to tell where
another is easy; the easier a kind, the less of the false alarms its score may use. All depend on
how a task was observed: by how many points, of how many outputs, with how much noise. So each has
the distribution that it has among simulated tasks observed alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dklfm.artifacts import MANIFEST, write_tensors
from dklfm.errors import ModelError
from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch, Scale
from dklfm.model.critic import LEVEL, alarm_shares, held_out, looks, new_critic, trained_critic
from dklfm.model.encoders import masked_mean

FILE = "trust.safetensors"
_WEIGHTS = {"p_embedding": 0.2, "p_outputs": 0.2, "p_critic": 0.6}
"""Of the numbers that a task is judged by."""
P_VALUES = tuple(_WEIGHTS)
_MOST = 0.9
"""Of a p-value that is combined: one that is near 1 does not make up for a small one."""
_NEIGHBOURS = 1200
"""Simulated tasks that were observed most alike; two thirds give centre and covariance."""
_REMEMBERED = 128
"""Designs whose neighbours are kept: some 200 kB each."""
_LEAST_TASKS = 8
_BIN = 0.25
"""Observations that differ by less, in logarithms, are compared with the same tasks."""
_SHRINKAGE = 0.03
"""Share of the features' own variances in their covariance."""
_LEAST_NOISE = 1e-3
"""Of an output's noise, in deviations of the training outputs."""


class Statistics(NamedTuple):
    """Of each task: how it was observed, what it looks like, and its mean squared residual."""

    design: Tensor
    features: Tensor
    residual: Tensor

    @classmethod
    def of(cls, batch: Batch, moments: Moments) -> Statistics:
        """From moments at the batch's own points first.

        Raises:
            ValueError: if the model has no embedding, or no law of the outputs.
        """
        if moments.embedding is None or moments.output_mean is None:
            raise ValueError("the model has no embedding, or no law of its outputs")
        assert moments.output_variance is not None
        points, mask = batch.y.shape[-1], batch.mask
        mean, variance = (
            values[..., :points] for values in (moments.output_mean, moments.output_variance)
        )
        noise = batch.y_sd.double().square() + _LEAST_NOISE**2
        squares = (batch.y.double() - mean).square() * mask
        seen = mask.any(-1)
        own = masked_mean(squares / (variance + noise), mask, -1)
        pure = masked_mean(squares / noise, mask, -1)
        residual = _log(masked_mean(own, seen, 1))
        location = masked_mean(batch.y, mask, -1)[..., None]
        spread = masked_mean((batch.y - location).square(), mask, -1).sqrt().double()
        level = _log(noise.sqrt() / (spread[..., None] + _LEAST_NOISE))
        features = [
            residual,
            _log((squares / (variance + noise)).amax((1, 2))),
            _log(masked_mean(pure, seen, 1)),
            _log(pure.amax(1)),
            moments.force_variance.log().mean(1),
            masked_mean(_log(variance), mask, -1).mean(1),
        ]
        gaps = batch.x[..., -1].masked_fill(~mask.any(1), torch.nan).diff(dim=1).nan_to_num()
        design = [
            _log(gaps.clamp_min(0).square().sum(1).double() + 1e-4),
            _log(seen.sum(1).double()),
            _log(mask.sum((1, 2)) / seen.sum(1).clamp_min(1)),
            masked_mean(masked_mean(level, mask, -1), seen, 1),
        ]
        return cls(
            torch.stack(design, -1),
            torch.cat([moments.embedding.double(), torch.stack(features, -1)], -1),
            residual,
        )

    @classmethod
    @torch.no_grad()
    def gathered(cls, model: ForceModel, scale: Scale, contexts: Iterable[Batch]) -> Statistics:
        """Of all tasks of some batches, as tables are inferred, on the CPU.

        Raises:
            ValueError: if the model has no embedding, or no law of the outputs.
        """
        parts = []
        for context in (filled(batch, scale) for batch in contexts):
            parts.append(cls.of(context, model.eval().begun(context, context.x)))
        return cls(*(torch.cat(of_each).cpu().float() for of_each in zip(*parts, strict=True)))


def _log(values: Tensor) -> Tensor:
    return values.double().clamp_min(1e-12).log()


class _Alike(NamedTuple):
    """Simulated tasks of one design: trends over what is left of the design, and what is usual.

    The numbers are the residual and the critic's scores; all that is usual is sorted.
    """

    slopes: Tensor  # term feature
    root: Tensor  # feature feature
    distances: Tensor  # task 1
    trends: Tensor  # term number
    numbers: Tensor  # task number
    strangeness: Tensor  # task, of the critic

    def p_values(self, own: Tensor, features: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
        """``task x 3``, of tasks with so much left of the design."""
        distances = _distance(self.root, features - own @ self.slopes)
        found = _exceedance(self.numbers, numbers - own @ self.trends)
        strangeness = -_least(found[:, 1:], shares)
        return torch.cat(
            [
                _exceedance(self.distances, distances[:, None]),
                found[:, :1],
                _exceedance(self.strangeness[:, None], strangeness[:, None]),
            ],
            -1,
        )


@dataclass(frozen=True)
class Trust:
    """What simulated tasks of a model look like, however they were observed.

    Attributes:
        design: ``task x ...``, how each was observed.
        features: ``task x size``, standardised, in half precision.
        centre, scale: ``size``, of the features.
        residual: ``task``.
        score: ``task x kind``, of the critic.
        shares: ``kind``, of the false alarms; zero for kinds that cannot be told.
        critic: from design and standardised features to how much a task looks like a stranger of
            each kind.
    """

    design: Tensor
    features: Tensor
    centre: Tensor
    scale: Tensor
    residual: Tensor
    score: Tensor
    shares: Tensor
    critic: nn.Sequential

    @classmethod
    def fit(
        cls, known: Statistics, alike: Statistics, strangers: Sequence[Statistics], seed: int
    ) -> Trust:
        """From simulated tasks.

        Args:
            known: tasks of the training, which others will be compared with.
            alike: more of them, and
            strangers: tasks of each kind that is not of the training, for the critic to tell apart.
            seed: of the critic's weights.
        """
        centre, scale = known.features.mean(0), known.features.std(0) + 1e-6

        def seen(found: Statistics) -> Tensor:
            return looks(found.design, (found.features - centre) / scale)

        of_alike, *of_strangers = (held_out(seen(found)) for found in (alike, *strangers))
        critic = trained_critic(of_alike[0], [train for train, _ in of_strangers], seed)
        usual = critic(of_alike[1])
        shares = alarm_shares(
            usual, [critic(held)[:, i] for i, (_, held) in enumerate(of_strangers)]
        )
        white = ((known.features - centre) / scale).half()
        score = critic(seen(known))
        return cls(known.design, white, centre, scale, known.residual, score, shares, critic)

    @torch.no_grad()
    def p_values(self, found: Statistics) -> dict[str, NDArray[np.float64]]:
        """How often simulated tasks look stranger, by each of P_VALUES.

        Raises:
            ModelError: if it was learnt with a model that has another embedding.
        """
        if found.features.shape[-1] != len(self.centre):
            raise ModelError(
                f"{FILE} was learnt with another model than the weights beside it: it knows "
                f"{len(self.centre)} features of a task, this model gives "
                f"{found.features.shape[-1]}; train the model again"
            )
        found = Statistics(*(values.cpu().float() for values in found))
        white = (found.features - self.centre) / self.scale
        score = self.critic(looks(found.design, white))
        bins = (found.design / _BIN).round()
        results = torch.empty(len(white), len(P_VALUES), dtype=torch.float64)
        distinct, which = torch.unique(bins, dim=0, return_inverse=True)
        for group, design in enumerate(distinct):
            some = which == group
            about = self._alike(tuple(design.tolist()))
            own = self._terms(found.design[some], _BIN * design)
            numbers = torch.cat([found.residual[some, None], score[some]], -1).double()
            results[some] = about.p_values(own, white[some].double(), numbers, self.shares)
        return dict(zip(P_VALUES, results.numpy().T, strict=True))

    @cached_property
    def _alike(self) -> Callable[[tuple[float, ...]], _Alike]:
        """What tasks look like that were observed so, by the numbers of a bin of designs."""
        return lru_cache(maxsize=_REMEMBERED)(self._observed_alike)

    def _observed_alike(self, bins: tuple[float, ...]) -> _Alike:
        design = _BIN * torch.tensor(bins)
        apart = ((self.design - design) / self._spread).square().sum(-1)
        near = apart.topk(min(_NEIGHBOURS, len(apart)), largest=False).indices.sort().values
        known = self.features[near].double()
        held = torch.arange(len(near)) % 3 == 0
        about = self._terms(self.design[near], design)
        slopes = torch.linalg.lstsq(about[~held], known[~held]).solution
        known = known - about @ slopes
        covariance = torch.cov(known[~held].T)
        covariance = (1 - _SHRINKAGE) * covariance + torch.diag(
            _SHRINKAGE * covariance.diagonal() + 1e-9
        )
        root = torch.linalg.cholesky(covariance)
        numbers = torch.cat([self.residual[near, None], self.score[near]], -1).double()
        trends = torch.linalg.lstsq(about, numbers).solution
        rests = numbers - about @ trends
        ranked = rests.sort(0).values
        usual = _least(_exceedance(ranked, rests)[:, 1:], self.shares)
        distances = _distance(root, known[held])
        return _Alike(
            slopes, root, distances.sort().values[:, None], trends, ranked, (-usual).sort().values
        )

    @property
    def _spread(self) -> Tensor:
        return self.design.std(0).clamp_min(1e-6)

    def _terms(self, designs: Tensor, design: Tensor) -> Tensor:
        """What is left of the design's influence among tasks observed alike is linear."""
        away = ((designs - design) / self._spread).double()
        return torch.cat([torch.ones(len(away), 1).to(away), away], -1)

    def save(self, folder: Path) -> str:
        """Write the file beside a model's weights, and return its digest."""
        names = (field.name for field in fields(self) if field.name != "critic")
        tensors = {name: getattr(self, name).contiguous() for name in names}
        tensors |= {f"critic.{name}": value for name, value in self.critic.state_dict().items()}
        write_tensors(folder / FILE, tensors)
        return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()

    @classmethod
    def load(cls, folder: Path, digest: str | None) -> Trust | None:
        """Read it and verify it; None of a model that has none, and so no digest of it.

        Raises:
            ModelError: if the file is missing or damaged.
        """
        if digest is None:
            return None
        path = folder / FILE
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise ModelError(f"{path} is damaged: it differs from {MANIFEST}; train it again")
            tensors = load_file(path)
            tasks, size = len(tensors["residual"].flatten()), len(tensors["centre"].flatten())
            designs, kinds = tensors["design"].shape[-1], len(tensors["shares"].flatten())
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise ModelError(f"{path} cannot be read ({error}); train it again") from None
        with torch.device("meta"):
            weights = new_critic(designs + size, kinds).state_dict()
        shapes = {
            "design": (tasks, designs),
            "features": (tasks, size),
            "centre": (size,),
            "scale": (size,),
            "residual": (tasks,),
            "score": (tasks, kinds),
            "shares": (kinds,),
            **{f"critic.{name}": tuple(value.shape) for name, value in weights.items()},
        }
        if set(tensors) != set(shapes):
            raise ModelError(
                f"{path} is damaged: it holds other tables than it must; train it again"
            )
        for name, tensor in tensors.items():
            if tensor.shape != shapes[name] or not tensor.is_floating_point():
                raise ModelError(f"{path} is damaged: {name} is no table of numbers as it must be")
            if not tensor.isfinite().all():
                raise ModelError(f"{path} is damaged: {name} is not finite; train it again")
        if tasks < _LEAST_TASKS or not (tensors["scale"] > 0).all():
            raise ModelError(f"{path} is damaged: it describes too few tasks; train it again")
        if not (tensors["shares"] >= 0).all() or not tensors["shares"].any():
            raise ModelError(f"{path} is damaged: its critic knows no strangers; train it again")
        critic = new_critic(designs + size, kinds)
        critic.load_state_dict({name: tensors.pop(f"critic.{name}") for name in weights})
        return cls(**tensors, critic=critic.requires_grad_(False))


def filled(batch: Batch, scale: Scale) -> Batch:
    """Inputs stretched to fill the domain, outputs of the usual size: as tables are inferred."""
    seen = batch.mask.any(1)[..., None]
    low = batch.x.masked_fill(~seen, torch.inf).amin(1, keepdim=True)
    high = batch.x.masked_fill(~seen, -torch.inf).amax(1, keepdim=True)
    x = torch.where(seen, (batch.x - low) / (high - low).clamp_min(1e-6), batch.x)
    y = scale.mean + scale.sd * batch.y
    count = batch.mask.sum((1, 2), keepdim=True).clamp_min(1)
    size = ((y.square() * batch.mask).sum((1, 2), keepdim=True) / count).sqrt()
    factor = float(np.hypot(scale.mean, scale.sd)) / size.clamp_min(1e-12)
    moved = torch.where(batch.mask, (factor * y - scale.mean) / scale.sd, 0.0)
    return replace(batch, x=x, y=moved, y_sd=factor * batch.y_sd)


def unlike(p_values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Which tasks to warn of, by all P_VALUES; about LEVEL of those that are alike.

    The p-values depend on one another; their Cauchy combination (Liu and Xie 2020) does not mind.
    """
    weighted = [
        weight * np.tan(np.pi * (0.5 - np.minimum(p_values[name], _MOST)))
        for name, weight in _WEIGHTS.items()
    ]
    return 0.5 - np.arctan(np.sum(weighted, axis=0)) / np.pi < LEVEL


def _distance(root: Tensor, values: Tensor) -> Tensor:
    """Squared Mahalanobis distance of each row from zero."""
    return torch.linalg.solve_triangular(root, values.mT, upper=False).square().sum(0)


def _least(p_values: Tensor, shares: Tensor) -> Tensor:
    """The smallest p-value of a task's kinds, each as many times its share."""
    told = shares > 0
    return (p_values[:, told] / shares[told]).amin(1)


def _exceedance(ranked: Tensor, values: Tensor) -> Tensor:
    """How often sorted numbers are as large, column by column."""
    below = torch.searchsorted(ranked.mT.contiguous(), values.mT.contiguous()).mT
    return (1 + len(ranked) - below).double() / (1 + len(ranked))
