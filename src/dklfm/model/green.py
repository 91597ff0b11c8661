"""A deep kernel whose embedding is the parameters of an equation that is linear in its force.

A network reads off the observations where the parameters are and how sure that is, and is trained
by those that tasks were simulated with. The posterior of force and outputs is the Green's
operator's (:mod:`dklfm.model.green_operator`), by exact conditioning, averaged over the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dklfm.config import GreenConfig
from dklfm.model.amortised import AmortisedLFM, FactorLaw, Laws
from dklfm.model.batch import Batch
from dklfm.model.conditioning import beside_own
from dklfm.model.encoders import masked_mean
from dklfm.model.evidence import Evidence, Integrated
from dklfm.model.gaussian import cholesky
from dklfm.model.green_operator import GreenOperator
from dklfm.model.modes import LARGEST

_TASKS_AT_ONCE = 16
"""Each needs some six megabytes."""
_LEAST_DEVIATION = 0.05
"""Of an input over tasks: what hardly varies is not made larger than that."""
_LEAST_NOISE = 1e-4
"""Of observations, as a share of their root mean square."""
_LEAST_VARIANCE = 1e-6
"""Of the force."""


class _Seen(NamedTuple):
    """What observations say of the weights of every output's modes, and what a network is told."""

    precision: Float[Tensor, "task output mode mode"]
    pull: Float[Tensor, "task output mode"]
    described: Float[Tensor, "task size"]


class GreenLFM(AmortisedLFM):
    """The model; see the module's docstring."""

    exchangeable = False

    def __init__(self, config: GreenConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs, width = config, outputs, config.width
        self.green = GreenOperator(config, axes, outputs)
        size, parameters = outputs * (2 * config.modes + 3), len(config.parameters)
        self.register_buffer("usual", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.lift = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(config.layers))
        last = nn.Linear(width, 2 * parameters)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.read = nn.Sequential(nn.LayerNorm(width), last)

    usual: Tensor
    deviation: Tensor

    @torch.no_grad()
    def standardise(self, contexts: Sequence[Batch]) -> None:
        """Learn the usual mean and deviation of every input from observed tasks."""
        described = torch.cat([self._seen(context).described for context in contexts])
        self.usual.copy_(described.mean(0))
        self.deviation.copy_(described.std(0).clamp_min(_LEAST_DEVIATION))

    @torch.no_grad()
    def laws(self, context: Batch, x: Tensor) -> Laws:
        parts = [
            self._laws(context.take(some), x[some])
            for some in torch.arange(len(context), device=x.device).split(_TASKS_AT_ONCE)
        ]
        forces, outputs, embeddings = zip(*parts, strict=True)
        return Laws(_joined(forces), _joined(outputs), torch.cat(embeddings))

    def loss(self, batch: Batch, context: Batch, conditional_weight: float = 0.0) -> Tensor:
        """Minus the log density of the true parameters, by the network alone.

        Raises:
            ValueError: if the batch does not tell them.
        """
        if batch.parameters is None:
            raise ValueError("training needs the parameters that the tasks were simulated with")
        self.require_outputs(context)
        mean, log_sd = self._read(self._seen(context))
        white = (batch.parameters - mean) * (-log_sd).exp()
        return (0.5 * white.square() + log_sd).sum(-1).mean()

    def _laws(self, context: Batch, x: Tensor) -> Laws:
        self.require_outputs(context)
        seen, green = self._seen(context), self.green
        mean, log_sd = self._read(seen)
        outputs, modes = seen.pull.shape[1:]
        precision = torch.stack([torch.block_diag(*each) for each in seen.precision])
        found = Evidence(green, precision, seen.pull.flatten(1)).integrated(
            mean.double(), log_sd.double().exp(), self.config.samples, self.config.iterations
        )
        at = green.force_modes(x)
        loads = at @ found.force_root
        variance = loads.square().sum(-1) + green.force_rest + _LEAST_VARIANCE
        force_mean = green.force_zero + (at @ found.force_weights[..., None])[..., 0]
        force = FactorLaw(
            force_mean.float()[:, None], 0.5 * variance.log().float()[:, None], loads[:, None]
        )
        law = torch.cat([found.weights[..., None], found.loads], -1).unflatten(1, (outputs, modes))
        least = torch.cholesky_inverse(cholesky(green.rest))
        own = beside_own(seen.precision, seen.pull, law, least)
        read = torch.stack([each(x) for each in green.output_modes], 1)  # task output point mode
        loads = own.loads(read)
        variance = loads.square().sum(-1) + _LEAST_NOISE**2 * _square(context)
        mean_outputs = green.zero + (read @ own.mean[..., None])[..., 0]
        of_outputs = FactorLaw(mean_outputs.float(), 0.5 * variance.log().float(), loads)
        return Laws(force, of_outputs, self._looks(found, mean, log_sd))

    def _looks(self, found: Integrated, mean: Tensor, log_sd: Tensor) -> Tensor:
        """What tells tasks of other laws: parameters, how well they fit, and if that surprises."""
        surprise = ((found.z - mean) * (-log_sd).exp()).clamp(-LARGEST, LARGEST)
        parts = [found.z, found.spread.log(), found.misfit.log()[:, None], surprise, log_sd]
        return torch.cat([part.float() for part in parts], -1)

    def _read(self, seen: _Seen) -> tuple[Tensor, Tensor]:
        """Where the network says that the parameters are, and the logarithm of how sure that is."""
        standard = (seen.described - self.usual) / self.deviation
        values = self.lift(standard.clamp(-LARGEST, LARGEST))
        for block in self.blocks:
            values = values + block(values)
        mean, log_sd = self.read(values).chunk(2, -1)
        return mean, log_sd.clamp(-LARGEST, 1.0)

    def _seen(self, context: Batch) -> _Seen:
        mask, green = context.mask, self.green
        x = context.x[:1] if (context.x[:1] == context.x).all() else context.x
        noise = context.y_sd.double().square() + _LEAST_NOISE**2 * _square(context)
        weight = torch.where(mask, 1 / noise, 0.0)
        residual = torch.where(mask, context.y.double() - green.zero, 0.0)
        precisions, pulls = [], []
        for i, modes in enumerate(green.output_modes):
            design = modes(x)
            precisions.append((design * weight[:, i, :, None]).mT @ design)
            pulls.append(((weight[:, i] * residual[:, i])[:, None] @ design)[:, 0])
        precision, pull = torch.stack(precisions, 1), torch.stack(pulls, 1)
        factor = cholesky(precision + torch.eye(precision.shape[-1]).to(precision))
        alone = torch.cholesky_solve(pull[..., None], factor)[..., 0]
        spread = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
        size = (alone.square().mean(-1, keepdim=True) + _LEAST_NOISE**2).sqrt()
        level = masked_mean(noise.sqrt(), mask, -1)[..., None] / size
        count = (1 + mask.sum(-1, keepdim=True)).double()
        parts = [alone / size, 0.5 * spread.log(), size.log(), level.log(), count.log()]
        return _Seen(precision, pull, torch.cat(parts, -1).flatten(1).float())


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
    )


def _square(context: Batch) -> Tensor:
    """Mean squares of what was observed of each output, ``task x output x 1``."""
    return masked_mean(context.y.double().square(), context.mask, -1)[..., None].clamp_min(
        _LEAST_NOISE**2
    )


def _joined(laws: Sequence[FactorLaw]) -> FactorLaw:
    return FactorLaw(
        torch.cat([law.mean for law in laws]),
        torch.cat([law.log_sd for law in laws]),
        torch.cat([law.loads for law in laws]),
    )
