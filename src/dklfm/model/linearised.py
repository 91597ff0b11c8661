"""The amortised posterior by exact conditioning on an equation that a network makes linear.

Over the tasks of a system, force and outputs are combinations of few modes,

    f(x) = m_f(x) + φ(x)·w,    h_j(x) = l_j + s_j (m_j(x) + ψ_j(x)·c_j).

Given what the system does not tell, rates above all, outputs are close to linear in the force. From
what was observed a network says how, and which forces are to be expected,

    w = L(y) v,    c_j = μ_j(y) + D_j(y) (w, z) + E_j(y) z_j,    (v, z, z_j) ~ N(0, I),

where z and z_j stand for what stays unknown beside the force, of all outputs together and of each
by itself, and L for what observations tell of the law of the force, its lengthscale above all. The
rest is algebra: outputs and force are one Gaussian with a covariance of few features, as in a deep
kernel, whose factors depend on the embedding (Eqs. 4-6 of the paper); conditioned on the
observations it is the posterior. So the fit to the observations is exact and not learnt, and what
is learnt, the operator of the equation as the observations suggest it, varies little. It is a step
of Gauss-Newton, or of an extended Kalman filter, whose linearisation comes from a network in place
of a solver. With several ``passes`` the network sees what the last one found, and says anew; each
is trained to be right by itself.

An output's observations enter by sums of the size of its modes, ψᵀN⁻¹ψ and ψᵀN⁻¹y, so that any
mesh, missing values and unequal noise are taken as they come, and a task costs little.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dklfm.config import LinearisedConfig
from dklfm.model.amortised import FactorLaw, JudgedLFM, Laws
from dklfm.model.batch import Batch
from dklfm.model.conditioning import Found, beside_own, conditioned
from dklfm.model.encoders import masked_mean
from dklfm.model.interpolation import spline_weights
from dklfm.model.modes import LARGEST, Modes, Seen
from dklfm.model.smoothing import LEAST_NOISE
from dklfm.model.solution import SolutionOperator

_FAINT = 0.01
"""Deviation of weights that are to matter little at first."""
_TRUSTED = 4.0
"""Logit of the share of an output's information that is used at first."""
_OWN = 0.05
"""Of those of what is unknown of an output alone."""
_BRISK = 10.0
"""Factors and shares are few, and learn so much faster."""
_REST = math.log(0.1)
"""Logarithm of how far the weights of an output's modes are from a linear law at first."""
_TASKS_PER_LESSON = 8
"""Of a batch, for each whose outputs are learnt from."""
_LEAST_VARIANCE = 1e-6
"""Of the force: what all modes together leave."""


class Block(nn.Module):
    """A network of each token, which sees the others where there are several.

    It sees their mean, and with any ``heads`` it attends to them.
    """

    def __init__(self, width: int, heads: int | None) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        if heads is not None:
            self.norm = nn.LayerNorm(width)
            if heads:
                self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.summary = nn.Linear(width, width)
        self.heads = heads

    def forward(self, values: Tensor, unseen: Tensor) -> Tensor:
        """``task token width`` to the same; unseen tokens, ``task token``, are not looked at."""
        if self.heads is not None:
            normed = self.norm(values)
            mean = masked_mean(normed, ~unseen[..., None], 1)[:, None]
            told = self.summary(mean)
            if self.heads:
                # Sequences of a few tokens: the blocked kernels cost more than they save.
                with sdpa_kernel(SDPBackend.MATH):
                    attended, _ = self.attention(
                        normed, normed, normed, key_padding_mask=unseen, need_weights=False
                    )
                values = values + attended
            values = values + told
        return values + self.network(values)


class Trail(NamedTuple):
    """Of a batch: what was seen, the tokens after the last pass, and what each pass found."""

    seen: Seen
    unseen: Float[Tensor, "task token"]
    values: Float[Tensor, "task token width"]
    found: list[Found]


def _reading(width: int, size: int) -> nn.Sequential:
    """Numbers that are close to zero at first."""
    read = nn.Linear(width, size)
    nn.init.normal_(read.weight, std=_FAINT / 10)
    nn.init.zeros_(read.bias)
    return nn.Sequential(nn.LayerNorm(width), read)


class Pass(nn.Module):
    """Blocks that see the tokens, and what was found before, and what is read from them."""

    def __init__(self, width: int, layers: int, heads: int | None, report: int, size: int) -> None:
        super().__init__()
        self.report = nn.Linear(report, width) if report else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.read = _reading(width, size)

    def forward(
        self, values: Tensor, unseen: Tensor, report: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``task token width`` to the same, and ``task token size`` numbers."""
        if self.report is not None:
            values = values + self.report(report)
        for block in self.blocks:
            values = block(values, unseen)
        return values, self.read(values)


def _force_law(at: Tensor, mean: Tensor, basis: Tensor, weights: Tensor, root: Tensor) -> FactorLaw:
    """At ``task x query x node`` weights; those of modes are ``task x mode x 1``, in float64."""
    design = at @ basis  # task query mode
    loads = design.double() @ root
    log_sd = 0.5 * (loads.square().sum(-1) + _LEAST_VARIANCE).log().float()
    mean = at @ mean + (design @ weights.float())[..., 0]
    return FactorLaw(mean[:, None], log_sd[:, None], loads[:, None])


class LinearisedLFM(JudgedLFM):
    """The model; see the module's docstring."""

    def __init__(self, config: LinearisedConfig, axes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs, width = config, outputs, config.width
        self.exchangeable = alike = config.exchangeable
        self.modes = Modes(config, axes, outputs)
        self.force_modes = config.force_modes
        self.latents = config.force_modes + config.unknowns
        # Outputs that are alike are tokens; those that are told apart are one together.
        kinds, parts = len(self.modes.mean), 1 if alike else outputs
        heads = config.heads if alike else None
        self.lift = nn.Linear(parts * self.modes.usual.shape[-1], width)
        self.own_unknowns = config.own_unknowns
        columns = self.latents + self.own_unknowns
        self.sizes = [config.modes * columns, config.modes, 1]
        report = 2 * self.latents + parts * (3 * config.modes + 2 * self.own_unknowns)
        size = parts * sum(self.sizes)
        self.passes = nn.ModuleList(
            Pass(width, config.layers, heads, report if i else 0, size)
            for i in range(config.passes)
        )
        scale = torch.full((columns,), _FAINT)
        scale[self.latents :] = _OWN
        self.design = nn.Parameter(scale * torch.randn(kinds, config.modes, columns))
        offset = torch.zeros(kinds, config.modes)
        if alike:
            offset[:, -1] = 1  # the mean function is the last mode
        self.offset = nn.Parameter(offset)
        self.prior = _reading(width, self.force_modes**2) if config.adaptive_prior else None
        self.told = nn.Linear(2 * self.latents, width)
        self.last = Block(width, heads)
        self.rest = nn.Linear(width, parts)
        nn.init.zeros_(self.rest.weight)
        nn.init.zeros_(self.rest.bias)
        size = len(self.modes.force_basis)
        self.solution: SolutionOperator | None = None
        if config.solution is not None:
            shape = kinds, size, config.modes, config.force_modes
            self.solution = SolutionOperator(config.solution, *shape)
            self.iterates = True
        final = nn.Linear(width, 2 * size)
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        self.correct = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), final)

    @property
    def mesh(self) -> int:
        """Points an axis of the even grid that modes are learnt on."""
        return self.modes.nodes[0]

    @torch.no_grad()
    def learn(self, outputs: Tensor, force: Tensor) -> None:
        """Take modes from simulated tasks; arguments as for :meth:`Modes.learn`."""
        slopes = self.modes.learn(outputs, force)
        self.design[..., : slopes.shape[-1]] = slopes

    def laws(self, context: Batch, x: Tensor) -> Laws:
        return self._laws(self._trail(context), spline_weights(self.modes.nodes, x), len(x))

    def answer(self, context: Batch, x: Tensor) -> Laws:
        """As :meth:`laws`; where there is a solution operator, by iterating on it from there."""
        at, trail = spline_weights(self.modes.nodes, x), self._trail(context)
        laws = self._laws(trail, at, len(x))
        if self.solution is None:
            return laws
        begun = self._force(trail.found[-1], torch.eye(at.shape[-1]).to(at))
        found = self.solution(trail.seen, begun.mean[:, 0])
        mean, basis = self.solution.force_mean.to(at), self.solution.force_basis.to(at)
        force = _force_law(at, mean, basis, found.force_weights[..., None], found.force_root)
        law = torch.cat([found.weights[..., None], found.loads], -1)
        outputs = self._outputs(trail.seen, law, torch.cholesky_inverse(self.solution.rest), at)
        return Laws(force, outputs, laws.embedding)

    def loss(self, batch: Batch, context: Batch, conditional_weight: float = 0.0) -> Tensor:
        at, trail = spline_weights(self.modes.nodes, batch.x), self._trail(context)
        # Of outputs there is little to learn, and their law costs as much as the force's.
        few = math.ceil(len(batch) / _TASKS_PER_LESSON)
        loss = self._judged(self._laws(trail, at, few), batch)
        for found in trail.found[:-1]:
            loss = loss + self._force_loss(self._force(found, at), batch)
        return loss

    def _trail(self, context: Batch) -> Trail:
        self.require_outputs(context)
        seen = self.modes(context)
        tokens = (len(context), 1)
        unseen = ~context.mask.any(-1) if self.exchangeable else context.mask.new_zeros(tokens)
        unseen = unseen & ~unseen.all(-1, keepdim=True)  # attention over nothing is NaN
        values = self.lift(self._joined(seen.described))
        found: list[Found] = []
        for each in self.passes:
            report = self._reported(seen, found[-1]) if found else None
            values, read = each(values, unseen, report)
            prior = self._prior(masked_mean(values, ~unseen[..., None], 1))
            found.append(self._conditioned(seen, self._parted(read), prior))
        return Trail(seen, unseen, values, found)

    def _prior(self, embedding: Tensor) -> Tensor:
        """Roots of the prior covariances of w, ``task x force mode x force mode``."""
        size = self.force_modes
        if self.prior is None:
            return torch.eye(size).to(embedding).double().expand(len(embedding), -1, -1)
        read = self.prior(embedding).unflatten(-1, (size, size))
        scale = read.diagonal(dim1=-2, dim2=-1).exp()
        mixed = torch.eye(size).to(read) + read - torch.diag_embed(read.diagonal(dim1=-2, dim2=-1))
        return (mixed * scale[:, None]).double()

    def _laws(self, trail: Trail, at: Tensor, judged: int) -> Laws:
        """At ``task x query x node`` weights; outputs are those of so many of the first tasks."""
        found = trail.found[-1]
        told = self.told(found.summary())[:, None]
        values = self.last(trail.values + told, trail.unseen)
        embedding = masked_mean(values, ~trail.unseen[..., None], 1)
        shift, log_ratio = self.correct(embedding).chunk(2, -1)  # task node
        force = self._force(found, at)
        log_sd = force.log_sd[:, 0] + (at @ log_ratio[..., None])[..., 0]
        # In units of what is not known: where a force is sure there is little to correct.
        mean = force.mean[:, 0] + (at @ shift[..., None])[..., 0] * log_sd.detach().exp()
        force = FactorLaw(mean[:, None], log_sd[:, None], force.loads)
        # The outputs' law follows; trained by it too, sharper by far, the network serves it first.
        known = Found(*(each[:judged].detach() for each in found))
        law = torch.cat([known.weights()[..., None], known.loads()], -1)
        log_rest = _REST + self._parted(self.rest(values[:judged].detach())).double()
        least = (-2 * log_rest).exp()[..., None] * torch.eye(self.config.modes).to(law)
        few = Seen(*(each[:judged] for each in trail.seen))
        outputs = self._outputs(few, law, least, at[:judged])
        return Laws(force, outputs, self._looks(values, trail.unseen, found, embedding))

    def _looks(self, values: Tensor, unseen: Tensor, found: Found, mean: Tensor) -> Tensor:
        """What tells tasks of other laws: also how tokens differ, and what numbers were found."""
        far = found.unknown[..., : self.own_unknowns].square().mean(1)
        parts = [mean, found.summary(), far.float()]
        if self.exchangeable:
            parts.append(masked_mean((values - mean[:, None]).square(), ~unseen[..., None], 1))
        return torch.cat(parts, -1)

    def _force(self, found: Found, at: Tensor) -> FactorLaw:
        return _force_law(at, self.modes.force_mean, self.modes.force_basis, *found.force())

    def _outputs(self, seen: Seen, law: Tensor, least: Tensor, at: Tensor) -> FactorLaw:
        """By a law of their modes' weights, and by their own observations; see ``beside_own``.

        Args:
            seen: these.
            law: mean and loads of c, ``task x output x mode x number``.
            least: precision of what the law leaves.
            at: ``task x query x node`` weights.
        """
        own = beside_own(seen.precision, seen.pull, law, least)
        mean, read = self.modes.outputs(at)
        both = own.loads(read.double())
        variance = both.square().sum(-1).float() + LEAST_NOISE**2
        mean = mean + (read @ own.mean.float()[..., None])[..., 0]
        log_sd = seen.scale.log() + 0.5 * variance.log()
        return FactorLaw(seen.location + seen.scale * mean, log_sd, both)

    def _conditioned(self, seen: Seen, read: Tensor, prior: Tensor) -> Found:
        """The posterior by what was read, ``task x output x number``; in float64."""
        law, offset, trust = read.split(self.sizes, -1)
        law = (self.design + law.unflatten(-1, self.design.shape[1:])).double()
        if self.prior is not None:
            size = self.force_modes
            law = torch.cat([law[..., :size] @ prior[:, None], law[..., size:]], -1)
        # What a linear law cannot fit is not to be believed in full.
        trust = torch.sigmoid(_TRUSTED + _BRISK * trust).double()
        believed = seen._replace(
            precision=trust[..., None] * seen.precision, pull=trust * seen.pull
        )
        design, own = law.tensor_split([self.latents], -1)
        return conditioned(believed, (self.offset + offset).double(), design, own, prior)

    def _reported(self, seen: Seen, found: Found) -> Tensor:
        """``task x token x size``: these, the outputs that go with them, and what these miss."""
        weights = found.weights()
        missed = (seen.alone - weights) / seen.spread
        fit = torch.cat([weights, found.offset, found.unknown, missed], -1)
        fit = self._joined(fit.clamp(-LARGEST, LARGEST).float())
        summary = found.summary()[:, None].clamp(-LARGEST, LARGEST)
        return torch.cat([summary.expand(-1, fit.shape[1], -1), fit], -1)

    def _joined(self, values: Tensor) -> Tensor:
        """``task x output x size`` as tokens."""
        return values if self.exchangeable else values.flatten(1)[:, None]

    def _parted(self, values: Tensor) -> Tensor:
        """Tokens as ``task x output x size``."""
        return values if self.exchangeable else values[:, 0].unflatten(1, (self.outputs, -1))
