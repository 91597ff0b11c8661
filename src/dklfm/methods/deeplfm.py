"""The deep latent force model of McDonald & Álvarez (NeurIPS 2021), fitted to one task at a time.

Every unit of a layer obeys dy/dt + γ y = ρ u(t) with a force u ~ GP(0, RBF(l)) of its own, and
layers are composed: the output of one is the time of the next. With random Fourier features of the
force, u(t) ≈ Σ_m Re[W_m* exp(iω_m t)] / √M and ω_m ~ N(0, 1/l²), the response is linear in the
Gaussian weights W:

    y(t) = y(0) e^(−γt) + ρ/√M Σ_m Re[W_m* φ_m(t)],  φ_m(t) = (e^(iω_m t) − e^(−γt)) / (γ + iω_m).

Where the paper leaves a choice, or this code departs from it:

- A unit adds up its responses to all inputs: the units before it, and the task's own inputs, fed
  forward to every layer. Each input has its own force, so that the kernel is a sum over inputs.
- The initial value y(0) is a weight too. The paper's responses start from zero; standardised
  outputs do not.
- The frequencies are drawn once and scaled by a learnt l for each input; they have no variational
  posterior. γ and ρ are learnt for each input and unit.
- Noise is as the task states it by y_sd; where it does not, one level is learnt for each output.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from dklfm.config.references import DeepLFMConfig
from dklfm.methods.single import TaskPosterior
from dklfm.systems import System
from dklfm.tasks import Tasks

_BATCH = 64
"""Points a step; of more, a random subset stands for all."""
_LEAST_NOISE_SD = 1e-3
"""Of standardised outputs: a task may state that it has no noise at all."""
_FIRST_NOISE_SD = 0.01
"""Of standardised outputs, where it is learnt; it grows as it must, but hardly shrinks again."""


class ResponseLayer(nn.Module):
    """Responses of first-order linear equations to Gaussian forces, summed over the inputs.

    The prior of every weight is N(0, 1), its posterior a Gaussian independent of the others, of
    equal variance in the real and the imaginary part of W.

    Args:
        inputs, outputs, features: their numbers.
        lengthscale, decay, sensitivity: initial l, γ and ρ.
        mean_sd, sd: standard deviation of the weights' initial means, and of the weights.
        generator: draws the frequencies and the initial means.
    """

    white_frequency: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        features: int,
        *,
        lengthscale: float,
        decay: float,
        sensitivity: float,
        mean_sd: float,
        sd: float,
        generator: Generator,
    ) -> None:
        super().__init__()

        def log(value: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, math.log(value)))

        shape = inputs, outputs, features
        self.register_buffer("white_frequency", torch.randn(inputs, features, generator=generator))
        self.log_lengthscale = log(lengthscale, inputs)
        self.log_decay = log(decay, inputs, outputs)
        self.log_sensitivity = log(sensitivity, inputs, outputs)
        self.real = nn.Parameter(mean_sd * torch.randn(shape, generator=generator))
        self.imaginary = nn.Parameter(mean_sd * torch.randn(shape, generator=generator))
        self.log_sd = log(sd, *shape)
        self.initial = nn.Parameter(torch.zeros(inputs, outputs))
        self.log_initial_sd = log(sd, inputs, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over the weights, ``output x point`` each, of ``input x point`` inputs.

        φ is never formed: moments are combinations of cos ωt, sin ωt and e^(−γt), and the outputs
        share the first two, which are costly. |φ|² = (1 − 2 e^(−γt) cos ωt + e^(−2γt)) / (γ² + ω²).
        """
        outputs, features = self.real.shape[1:]
        frequency = self.white_frequency / self.log_lengthscale.exp()[:, None]
        angle = frequency[..., None] * x[:, None]  # input x feature x point
        frequency, decay = frequency[:, None], self.log_decay.exp()[..., None]
        transient = torch.exp(-decay * x[:, None])  # input x output x point

        squared = decay**2 + frequency**2  # input x output x feature, as the weights
        gain = self.log_sensitivity.exp()[..., None] / (math.sqrt(features) * squared)
        cosine = gain * (decay * self.real - frequency * self.imaginary)
        sine = gain * (frequency * self.real + decay * self.imaginary)
        power = gain**2 * squared * (2 * self.log_sd).exp()

        projected = torch.cat([cosine, power], 1) @ angle.cos()
        start = self.initial - cosine.sum(-1)
        mean = projected[:, :outputs] + sine @ angle.sin() + start[..., None] * transient
        start_variance = (2 * self.log_initial_sd).exp() + power.sum(-1)
        variance = power.sum(-1)[..., None] + start_variance[..., None] * transient**2
        variance = variance - 2 * transient * projected[:, outputs:]
        return mean.sum(0), variance.sum(0).clamp_min(1e-12)  # rounding may leave it negative

    def divergence(self) -> Tensor:
        """Kullback–Leibler divergence of the weights' posterior from their prior."""
        groups = (
            (self.real, self.log_sd),
            (self.imaginary, self.log_sd),
            (self.initial, self.log_initial_sd),
        )
        terms = [(m**2 + (2 * s).exp() - 1 - 2 * s).sum() / 2 for m, s in groups]
        return torch.stack(terms).sum()


class _Network(nn.Module):
    """Layers of responses: to the task's inputs in ``direct``, to the units before in ``deep``.

    All weights start almost certain: hidden units as draws of their prior, outputs at zero. With
    weights as wide as the prior at first, and much noise, the outputs stay close to their means.
    """

    def __init__(self, axes: int, outputs: int, config: DeepLFMConfig, generator: Generator):
        super().__init__()
        hidden = config.layers - 1
        shapes = [{"outputs": config.width, "mean_sd": 1.0}] * hidden
        shapes += [{"outputs": outputs, "mean_sd": 0.0}]
        layer = partial(ResponseLayer, features=config.features, sd=0.1, generator=generator)
        # Inputs lie in [0, 1], units within a few of 0: responses to both are then of order one.
        direct = partial(layer, axes, lengthscale=0.2, decay=1.0, sensitivity=2.0)
        deep = partial(layer, config.width, lengthscale=1.0, decay=0.1, sensitivity=0.3)
        self.direct = nn.ModuleList(direct(**shape) for shape in shapes)
        self.deep = nn.ModuleList(deep(**shape) for shape in shapes[1:])

    def forward(self, x: Tensor, samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Moments of the outputs given samples of the hidden units, ``output x sample x point``.

        Points are sampled independently: only their marginals matter (local reparameterisation).
        """
        mean, variance = (moment[:, None] for moment in self.direct[0](x))
        for direct, deep in zip(self.direct[1:], self.deep, strict=True):
            noise = torch.randn(len(mean), samples, x.shape[1], generator=generator)
            units = (mean + variance.sqrt() * noise).flatten(1)
            mean, variance = (
                ours[:, None] + theirs.view(-1, samples, x.shape[1])
                for ours, theirs in zip(direct(x), deep(units), strict=True)
            )
        return mean, variance

    def divergence(self) -> Tensor:
        layers = [*self.direct, *self.deep]
        return torch.stack([layer.divergence() for layer in layers]).sum()


class DeepLFM:
    """Doubly stochastic variational inference of the outputs; the forces are not the task's."""

    name = "deeplfm"

    def __init__(self, system: System, config: DeepLFMConfig) -> None:
        self.system = system
        self.config = config

    def fit(self, task: Tasks) -> TaskPosterior:
        """The posterior of the only task given, of any system.

        Time 0 is the lowest input of all, observed or asked for.
        """
        low, high = task.domain
        extent = np.where(high > low, high - low, 1.0)
        places = np.concatenate([task["x"][0], task["x_query"][0]])
        x = _tensor(np.nan_to_num((places - np.nanmin(places, axis=0)) / extent).T)
        y, centre, scale = _standardised(task["y"][0])
        if "y_sd" in task:
            log_noise = _tensor(np.nan_to_num(task["y_sd"][0]) / scale)
            log_noise = log_noise.clamp_min(_LEAST_NOISE_SD).log()
        else:
            log_noise = torch.full((len(y), 1), math.log(_FIRST_NOISE_SD), requires_grad=True)

        generator = torch.Generator().manual_seed(0)
        network = _Network(len(x), len(y), self.config, generator)
        self._maximise_bound(network, x[:, : y.shape[1]], _tensor(y), log_noise, generator)
        with torch.no_grad():
            parts = [
                network(part, self.config.samples, generator) for part in x.split(_BATCH, dim=1)
            ]
        mean, variance = (torch.cat(part, -1).double().numpy() for part in zip(*parts, strict=True))
        variance = variance.mean(1) + mean.var(1)
        return TaskPosterior(None, None, centre + scale * mean.mean(1), scale**2 * variance)

    def _maximise_bound(
        self, network: _Network, x: Tensor, y: Tensor, log_noise: Tensor, generator: Generator
    ) -> None:
        """Adam on the evidence lower bound; ``log_noise`` is fitted too if it wants a gradient."""
        observed = torch.isfinite(y)
        y = torch.where(observed, y, 0.0)[:, None]
        points = torch.nonzero(observed.any(0))[:, 0]
        learnt = [*network.parameters(), *([log_noise] if log_noise.requires_grad else [])]
        adam = torch.optim.Adam(learnt, lr=self.config.learning_rate)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.config.iterations)
        for _ in range(self.config.iterations):
            part = points
            if len(points) > _BATCH:
                part = points[torch.randperm(len(points), generator=generator)[:_BATCH]]
            mean, variance = network(x[:, part], self.config.samples, generator)
            log_sd = log_noise.expand_as(observed)[:, part]
            misfit = ((y[..., part] - mean) ** 2 + variance).mean(1) * torch.exp(-2 * log_sd)
            surprise = (misfit / 2 + log_sd)[observed[:, part]].sum() * (len(points) / len(part))
            adam.zero_grad()
            (surprise + network.divergence()).backward()
            adam.step()
            rate.step()


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()


def _standardised(
    y: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``output x point`` values of mean 0 and variance 1, their means and deviations.

    An output that does not vary keeps its scale, and one that was never observed its origin too.
    """
    count = np.isfinite(y).sum(1, keepdims=True).clip(1)
    mean = np.nansum(y, axis=1, keepdims=True) / count
    sd = np.sqrt(np.nansum((y - mean) ** 2, axis=1, keepdims=True) / count)
    sd = np.where(sd > 0, sd, 1.0)
    return (y - mean) / sd, mean, sd
