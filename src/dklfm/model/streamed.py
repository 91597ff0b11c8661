"""The kernel route for endless tasks: the DKLFM with an encoder that can use them.

The paper's encoder sees each output alone, by its values. Here it also sees what a smoother makes
of them (value, slope, curvature and how sure they are), the noise, and the outputs' own scales;
then outputs attend to one another, and the force is an output of its own among them.
"""

from __future__ import annotations

import torch
from torch import nn

from dklfm.config import KernelRouteConfig, TransformerConfig
from dklfm.model.batch import Batch
from dklfm.model.dklfm import DKLFM, Embedding
from dklfm.model.encoders import TransformerEncoder
from dklfm.model.smoothing import Smoother, standardise


class StreamedDKLFM(DKLFM):
    """The model; see the module's docstring."""

    method = "dklfm_stream"

    def __init__(self, config: KernelRouteConfig, axes: int, outputs: int) -> None:
        super().__init__(config, axes, outputs)
        assert isinstance(config.encoder, TransformerConfig)
        encoder, size = config.encoder, config.embedding
        self.smoother = Smoother((2,) * axes, config.lengthscale)
        self.encoder = TransformerEncoder(
            axes,
            size,
            encoder.width,
            encoder.layers,
            encoder.heads,
            encoder.frequencies,
            channels=8 + 2 * axes,
        )
        self.force = nn.Parameter(0.1 * torch.randn(size))
        layer = nn.TransformerEncoderLayer(
            size, encoder.heads, 4 * size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.among = nn.TransformerEncoder(
            layer, config.across, norm=nn.LayerNorm(size), enable_nested_tensor=False
        )

    def embed(self, batch: Batch) -> Embedding:
        """Encode every output, then let them and the force attend to one another.

        Raises:
            DataError: if the tasks have another number of outputs than the model tells apart.
        """
        self.require_outputs(batch)
        tasks, outputs, points = batch.y.shape
        relative, scale, location, noise = standardise(batch)
        found = self.smoother(batch.x, relative, noise, batch.mask, at=batch.x)
        own = [scale, scale.log(), location]
        channels = [
            batch.y,
            relative,
            noise.log(),
            found.mean.float(),
            found.sd.float().log(),
            *(value.expand_as(batch.y) for value in own),
        ]
        values = torch.cat(
            [
                torch.stack(channels, -1),
                0.1 * found.slopes.float(),
                0.01 * found.curvatures.float(),
            ],
            -1,
        )
        x = batch.x[:, None].expand(-1, outputs, -1, -1).reshape(tasks * outputs, points, -1)
        r = self.encoder(x, values.flatten(0, 1), batch.mask.flatten(0, 1))
        r = r.unflatten(0, (tasks, outputs))
        if self.names is not None:
            r = r + self.names
        tokens = torch.cat([self.force.expand(tasks, 1, -1), r], 1)
        unseen = nn.functional.pad(~batch.mask.any(-1), (1, 0), value=False)
        mixed = self.among(tokens, src_key_padding_mask=unseen)
        return Embedding(mixed[:, 1:], mixed[:, 0])
