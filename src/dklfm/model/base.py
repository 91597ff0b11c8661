"""What a trainable model is: a network with a density to train by and a posterior to infer with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from dklfm.errors import DataError
from dklfm.model.batch import Batch
from dklfm.model.gaussian import LogDensities


class Moments(NamedTuple):
    """Posterior moments on the model's scale; those of the outputs only if it has a law of them."""

    force_mean: Float[Tensor, "task query"]
    force_variance: Float[Tensor, "task query"]
    output_mean: Float[Tensor, "task output query"] | None = None
    output_variance: Float[Tensor, "task output query"] | None = None
    force_covariance: Float[Tensor, "task query query"] | None = None
    embedding: Float[Tensor, "task size"] | None = None


class ForceModel(nn.Module, ABC):
    """A network that infers a force: what one trainer, one store and one method serve.

    ``method`` is its name in a config; ``exchangeable`` says whether outputs have one law for it,
    so that there may be any number of them, or are told apart by their place;
    ``judged_where_seen`` whether its density is that of the observations that it sees, or of other
    points; ``joint`` whether it has a joint law of the force over points; ``iterates`` whether the
    posterior is iterated to from where a network lets it begin, in a multiple of its time.
    """

    method: str
    exchangeable: bool
    outputs: int
    judged_where_seen: bool = False
    joint: bool = False
    iterates: bool = False

    def scales(self) -> Iterator[nn.Parameter]:
        """Scales of kernels and noise, which are no weights of a network."""
        for name, parameter in self.named_parameters():
            if name.startswith(("kernel.", "log_")):
                yield parameter

    def require_outputs(self, batch: Batch) -> None:
        """Refuse tasks with outputs that the model cannot tell apart.

        Raises:
            DataError: if they have another number of outputs than those trained on.
        """
        if not self.exchangeable and batch.y.shape[1] != self.outputs:
            raise DataError(
                f"the tasks have {batch.y.shape[1]} outputs, {self.method} was trained on "
                f"{self.outputs} that it tells apart; train it on tasks like these, or, for "
                "dklfm and dklfm_stream, with model.exchangeable: true"
            )

    @abstractmethod
    def log_densities(self, batch: Batch, context: Batch | None = None) -> LogDensities:
        """Densities to train by; a model without a law of the outputs has no output points.

        Args:
            batch: training tasks.
            context: what the model sees of them; the whole batch by default.

        Raises:
            ValueError: if the batch has no force.
        """

    def loss(self, batch: Batch, context: Batch, conditional_weight: float = 0.0) -> Tensor:
        """What training minimises: −log p(y, f) a point, and so many times −log p(f | y) a point.

        Arguments as for :meth:`log_densities`.
        """
        densities = self.log_densities(batch, context)
        points = densities.output_points + densities.force_points
        joint = (densities.outputs + densities.force_given_outputs) / points
        conditional = densities.force_given_outputs / densities.force_points
        return -(joint + conditional_weight * conditional).mean()

    @abstractmethod
    def posterior(self, batch: Batch, x_query: Tensor, covariance: bool = False) -> Moments:
        """Moments given observations, in float64.

        Args:
            batch: observations; a force in it is not looked at.
            x_query: ``task x query x axis`` inputs in [0, 1].
            covariance: also give the force's joint covariance, of models that have one.
        """

    def begun(self, batch: Batch, x_query: Tensor) -> Moments:
        """Moments where a network lets iteration begin; of a model without such, the posterior's.

        Arguments as for :meth:`posterior`.
        """
        return self.posterior(batch, x_query)

    def coupling(self, batch: Batch) -> float | None:
        """How far the force depends on the outputs under the prior, of models that have one."""
        return None
