"""Features of the inputs: their definitions, and what continues beyond the domain."""

from __future__ import annotations

import math

import pytest
import torch

from dklfm.model.features import FourierFeatures, PeriodFeatures


@pytest.mark.parametrize("axes", [1, 2])
def test_fourier_features_are_inputs_with_sines_and_cosines(axes: int) -> None:
    features, x = FourierFeatures(axes, 3, 0.25, 4.0), torch.rand(5, axes)
    found = features(x)
    assert found.shape == (5, features.size)
    angle = 2 * math.pi * x[:, 0] * 0.25
    torch.testing.assert_close(found[:, 0], x[:, 0])
    torch.testing.assert_close(found[:, axes], torch.sin(angle))
    torch.testing.assert_close(found[:, axes * 4], torch.cos(angle))


def test_fourier_features_end_at_the_highest_frequency() -> None:
    found = FourierFeatures(1, 3, 0.25, 4.0)(torch.tensor([[0.06]]))
    assert found[0, 3].item() == pytest.approx(math.sin(2 * math.pi * 4 * 0.06), abs=1e-6)


def test_period_features_repeat_after_each_task_s_own_period() -> None:
    torch.manual_seed(0)
    features = PeriodFeatures(1, 4, 3, 0.2, 0.7)
    r, x = torch.randn(3, 4), torch.rand(3, 6, 1)
    period = features.period(r)
    assert len(period.unique()) == 3
    torch.testing.assert_close(
        features(x + 2 * period[:, None], r), features(x, r), rtol=0, atol=1e-4
    )


def test_periods_keep_their_bounds() -> None:
    features = PeriodFeatures(1, 4, 3, 0.2, 0.7)
    period = features.period(100 * torch.randn(50, 4))
    assert period.min().item() >= 0.2 - 1e-6
    assert period.max().item() <= 0.7 + 1e-6


@pytest.mark.parametrize("axes", [1, 2])
def test_period_features_have_their_stated_size(axes: int) -> None:
    features = PeriodFeatures(axes, 4, 3, 0.2, 0.7)
    assert features(torch.rand(2, 5, axes), torch.randn(2, 4)).shape == (2, 5, features.size)
