"""Exact conditioning of a linear equation with unknowns of all outputs and of each by itself.

    c_j = μ_j + D_j v + E_j z_j,    (v, z_j) ~ N(0, I),

where c_j are the weights of output j's modes. Each z_j is conditioned on output j alone and leaves
the sum over outputs by its Schur complement, so that many outputs cost no more than their number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dklfm.model.gaussian import cholesky
from dklfm.model.modes import Seen


class Found(NamedTuple):
    """Posterior of (v, z), with the covariance ``root`` ``root``ᵀ, and how outputs depend on it.

    v is white, and w = ``prior`` v. What is unknown of an output by itself is conditioned on its
    observations already: given (v, z) its weights have the mean ``offset`` + ``design`` (v, z) and
    the covariance ``own`` ``own``ᵀ.
    """

    mean: Float[Tensor, "task latent"]
    root: Float[Tensor, "task latent latent"]
    offset: Float[Tensor, "task output mode"]
    design: Float[Tensor, "task output mode latent"]
    own: Float[Tensor, "task output mode unknown"]
    unknown: Float[Tensor, "task output size"]  # means and log deviations of z_j
    prior: Float[Tensor, "task force_mode force_mode"]
    log_det: Float[Tensor, " task"]  # of the precision of v and all z_j

    def weights(self) -> Tensor:
        """Posterior mean of c, ``task x output x mode``."""
        shift = self.design.flatten(1, 2) @ self.mean[..., None]
        return self.offset + shift[..., 0].unflatten(1, self.offset.shape[1:])

    def loads(self) -> Tensor:
        """Its root, ``task x output x mode x number``."""
        found = self.design.flatten(1, 2) @ self.root
        return torch.cat([found.unflatten(1, self.offset.shape[1:]), self.own], -1)

    def force(self) -> tuple[Tensor, Tensor]:
        """Posterior mean of w, ``task x force mode x 1``, and its root."""
        size = self.prior.shape[-1]
        return self.prior @ self.mean[:, :size, None], self.prior @ self.root[:, :size]

    def summary(self) -> Tensor:
        """``task x size``: means and log deviations of (w, z)."""
        mean, root = self.force()
        size = self.prior.shape[-1]
        means = torch.cat([mean[..., 0], self.mean[:, size:]], -1)
        spread = torch.cat([root, self.root[:, size:]], 1).square().sum(-1)
        return torch.cat([means, 0.5 * spread.log()], -1).float()


def conditioned(
    seen: Seen,
    offset: Float[Tensor, "task output mode"],
    design: Float[Tensor, "task output mode latent"],
    own: Float[Tensor, "task output mode unknown"],
    prior: Float[Tensor, "task force_mode force_mode"],
) -> Found:
    """The posterior of v and z_j, given what was seen of the outputs; all in float64.

    Args:
        seen: observations of each output.
        offset: μ.
        design: D; its first columns, as many as force modes, are of the force.
        own: E, of which there may be no columns.
        prior: root of the covariance of the weights of the force's modes.
    """
    size, unknowns = design.shape[-1], own.shape[-1]
    weighted = seen.precision @ torch.cat([design, own, offset[..., None]], -1)
    pull = seen.pull - weighted[..., -1]
    read_design, read_own = weighted[..., :-1].tensor_split([size], -1)
    log_det = offset.new_zeros(len(offset))
    if unknowns:
        each = cholesky(torch.eye(unknowns).to(own) + own.mT @ read_own)
        own = torch.linalg.solve_triangular(each, own.mT, upper=False).mT
        explained = own.mT @ torch.cat([read_design, pull[..., None]], -1)
        offset = offset + (own @ explained[..., -1:])[..., 0]
        design = design - own @ explained[..., :-1]
        log_det = 2 * each.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
    # One product over outputs and modes, not one an output.
    transposed = design.flatten(1, 2).mT
    eye = torch.eye(size).to(design)
    factor = cholesky(eye + transposed @ read_design.flatten(1, 2))
    root = torch.linalg.solve_triangular(factor.mT, eye, upper=True)
    mean = root @ (root.mT @ (transposed @ pull.flatten(1)[..., None]))
    log_det = log_det + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    unknown = own[..., 0, :]
    if unknowns:
        left = explained[..., -1:] - explained[..., :-1] @ mean[:, None]
        inverse = torch.linalg.solve_triangular(each.mT, torch.eye(unknowns).to(own), upper=True)
        spread = inverse.square().sum(-1)
        unknown = torch.cat([(inverse @ left)[..., 0], 0.5 * spread.log()], -1)
    return Found(mean[..., 0], root, offset, design, own, unknown, prior, log_det)


class Own(NamedTuple):
    """Weights of outputs' modes by a law of few numbers and by their own observations beside it."""

    mean: Float[Tensor, "task output mode"]
    design: Float[Tensor, "task output mode number"]
    factor: Float[Tensor, "task output mode mode"]  # of the precision that is left to them

    def loads(self, read: Float[Tensor, "task output point mode"]) -> Tensor:
        """Root of the outputs' covariance at points, ``task x output x point x number``."""
        alone = torch.linalg.solve_triangular(self.factor, read.mT, upper=False).mT
        return torch.cat([read @ self.design, alone], -1)


def beside_own(
    precision: Float[Tensor, "task output mode mode"],
    pull: Float[Tensor, "task output mode"],
    law: Float[Tensor, "task output mode number"],
    least: Tensor,
) -> Own:
    """What a law of few numbers says of c, and what the observations say beside it.

    c is as the law says, with so many loads beside its mean, and something of its own with the
    precision Λ. Given these numbers, it has the precision S + Λ and the mean of both.

    Args:
        precision: S, that of the observations.
        pull: what they pull to.
        law: mean and loads of c.
        least: Λ, ``task x output x mode x mode``.
    """
    factor = cholesky(precision + least)
    pulled = least @ law
    pulled[..., :1] += pull[..., None]
    mean, design = torch.cholesky_solve(pulled, factor).tensor_split([1], -1)
    return Own(mean[..., 0], design, factor)
