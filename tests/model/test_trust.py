"""What tasks look like to a model, and which look like none of its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dklfm.errors import ModelError
from dklfm.model import Batch, Statistics, Trust
from dklfm.model.trust import P_VALUES, unlike
from dklfm.systems import LotkaVolterra, ReactionDiffusion, System, Transcription
from dklfm.training.corruptions import CORRUPTIONS, mixed, noisier, shuffled, spiked


def statistics(count: int, seed: int, shift: float = 0.0) -> Statistics:
    """Of tasks whose features are normal about their design, and correlated."""
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(count, 2, generator=generator)
    features = torch.randn(count, 6, generator=generator)
    features[:, 1] = features[:, 0] + 0.1 * features[:, 1] + shift
    features = features + design[:, :1]
    residual = torch.randn(count, generator=generator) + design[:, 1]
    return Statistics(design, features, residual)


@pytest.fixture(scope="module")
def trust() -> Trust:
    strangers = [statistics(3000, 2, shift=0.5), statistics(3000, 7)]
    return Trust.fit(statistics(3000, 0), statistics(3000, 1), strangers, 0)


def test_tasks_of_the_training_are_called_so(trust: Trust) -> None:
    found = trust.p_values(statistics(500, 3))
    assert set(found) == set(P_VALUES)
    for p_values in found.values():
        assert abs(np.mean(p_values < 0.2) - 0.2) < 0.08
    assert unlike(found).mean() < 0.08


def test_strangers_are_known_by_the_critic_where_no_single_number_tells(trust: Trust) -> None:
    found = trust.p_values(statistics(500, 4, shift=0.5))
    assert (found["p_critic"] < 0.04).mean() > 0.9
    assert unlike(found).mean() > 0.9


def test_a_kind_that_cannot_be_told_takes_no_share_of_the_false_alarms(trust: Trust) -> None:
    told, untold = trust.shares.tolist()
    assert told > 0
    assert untold == 0


def test_what_the_critic_never_saw_is_known_by_its_distance(trust: Trust) -> None:
    strange = statistics(200, 5)
    strange = strange._replace(
        features=strange.features.index_add(1, torch.tensor([4]), torch.full((200, 1), 25.0))
    )
    assert (trust.p_values(strange)["p_embedding"] < 0.01).all()


def test_trust_is_read_as_it_was_written(trust: Trust, tmp_path: Path) -> None:
    digest = trust.save(tmp_path)
    again = Trust.load(tmp_path, digest)
    assert again is not None
    tasks = statistics(50, 6)
    for name, p_values in trust.p_values(tasks).items():
        np.testing.assert_array_equal(again.p_values(tasks)[name], p_values)
    assert Trust.load(tmp_path, None) is None


def test_trust_that_is_missing_or_of_another_model_is_refused(trust: Trust, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        Trust.load(tmp_path, "0" * 64)
    trust.save(tmp_path)
    with pytest.raises(ModelError, match="differs from"):
        Trust.load(tmp_path, "0" * 64)


def test_a_model_with_other_features_than_it_was_learnt_with_is_one_clear_error(
    trust: Trust,
) -> None:
    found = statistics(5, 3)
    with pytest.raises(
        ModelError, match=r"another model.*6 features of a task, this model gives 4"
    ):
        trust.p_values(found._replace(features=found.features[:, :4]))


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4, 3, 6, generator=generator)
    mask = torch.rand(4, 3, 6, generator=generator) < 0.8
    mask[..., 0] = True
    x = torch.linspace(0, 1, 6).expand(4, 6)[..., None]
    return Batch(x, torch.where(mask, y, 0.0), torch.full_like(y, 0.1), mask, None)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupted_observations_are_others_at_the_same_points(corruption, batch: Batch) -> None:  # type: ignore[no-untyped-def]
    found = corruption(batch, torch.Generator().manual_seed(1))
    assert found.y.shape == batch.y.shape
    assert found.mask.sum() == batch.mask.sum()
    assert not torch.equal(found.y, batch.y)
    assert (found.y[~found.mask] == 0).all()


def test_corruptions_do_what_they_say(batch: Batch) -> None:
    generator = torch.Generator().manual_seed(1)
    order = shuffled(batch, generator)
    torch.testing.assert_close(order.y.sort(-1).values, batch.y.sort(-1).values)
    assert ((spiked(batch, generator).y != batch.y).sum(-1) <= 1).all()
    assert (noisier(batch, generator).y - batch.y).std() > 0.2
    torch.testing.assert_close(mixed(batch, generator).y[1, 2], batch.y[3, 2])


@pytest.mark.parametrize("system", [Transcription(), LotkaVolterra(), ReactionDiffusion()])
def test_strangers_have_priors_that_exclude_the_systems_own(system: System) -> None:
    others = system.strangers()
    assert len(others) >= 5
    for other in others:
        (changed,) = [
            n for n in type(system).model_fields if getattr(system, n) != getattr(other, n)
        ]
        own, new = getattr(system, changed), getattr(other, changed)
        if hasattr(own, "bounds"):
            assert new.bounds[1] < own.bounds[0] or new.bounds[0] > own.bounds[1]
    draws = [other.draw(np.random.default_rng(0)) for other in others]
    assert all(np.isfinite(value).all() for draw in draws for value in draw.values())
