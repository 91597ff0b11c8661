"""Several networks of one configuration as one model: the moments of their mixture.

Networks that start from other weights err differently where tasks are few; their mean errs less,
and how far they are apart is uncertainty that none of them knows (Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dklfm.model.base import ForceModel, Moments
from dklfm.model.batch import Batch
from dklfm.model.gaussian import LogDensities


class Ensemble(ForceModel):
    """Members that are trained on the same batches, each by its own loss."""

    def __init__(self, member: Callable[[], ForceModel], count: int) -> None:
        super().__init__()
        members = [member() for _ in range(count)]
        self.members = nn.ModuleList(members)
        first = members[0]
        self.method, self.outputs = first.method, first.outputs
        self.exchangeable, self.judged_where_seen = first.exchangeable, first.judged_where_seen
        self.joint = first.joint

    def _all(self) -> Iterator[ForceModel]:
        for member in self.members:
            assert isinstance(member, ForceModel)
            yield member

    def scales(self) -> Iterator[nn.Parameter]:
        for member in self._all():
            yield from member.scales()

    def log_densities(self, batch: Batch, context: Batch | None = None) -> LogDensities:
        """The members' mean, which that of their mixture is not below."""
        found = [member.log_densities(batch, context) for member in self._all()]
        return found[0]._replace(
            outputs=torch.stack([each.outputs for each in found]).mean(0),
            force_given_outputs=torch.stack([each.force_given_outputs for each in found]).mean(0),
        )

    def loss(self, batch: Batch, context: Batch, conditional_weight: float = 0.0) -> Tensor:
        losses = [member.loss(batch, context, conditional_weight) for member in self._all()]
        return torch.stack(losses).mean()

    def posterior(self, batch: Batch, x_query: Tensor, covariance: bool = False) -> Moments:
        """Mean and covariance of the mixture; the embeddings of all members side by side."""
        found = [member.posterior(batch, x_query, covariance) for member in self._all()]

        def stacked(name: str) -> Tensor | None:
            values = [getattr(each, name) for each in found]
            return None if values[0] is None else torch.stack(values)

        force_mean, force_variance, joint = _mixed(
            *(stacked(f"force_{name}") for name in ("mean", "variance", "covariance"))
        )
        output_mean, output_variance, _ = _mixed(
            stacked("output_mean"), stacked("output_variance"), None
        )
        embeddings = stacked("embedding")
        assert force_mean is not None
        assert force_variance is not None
        return Moments(
            force_mean,
            force_variance,
            output_mean,
            output_variance,
            joint,
            None if embeddings is None else torch.cat(embeddings.unbind(), -1),
        )

    @torch.no_grad()
    def coupling(self, batch: Batch) -> float | None:
        """That of the member that is coupled least."""
        found = [coupling for m in self._all() if (coupling := m.coupling(batch)) is not None]
        return min(found, default=None)


def _mixed(
    means: Tensor | None, variances: Tensor | None, covariances: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Moments of an even mixture of Gaussians, the first axis of each argument."""
    if means is None or variances is None:
        return None, None, None
    mean = means.mean(0)
    away = means - mean
    variance = variances.mean(0) + away.square().mean(0)
    if covariances is None:
        return mean, variance, None
    spread = away[..., :, None] * away[..., None, :]
    return mean, variance, (covariances + spread).mean(0)
