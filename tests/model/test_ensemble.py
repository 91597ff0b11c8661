"""Several networks as one model: the moments of their mixture, each trained by its own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dklfm import simulate, training
from dklfm.config import TrainSpec, resolved, validate
from dklfm.methods import TrainedModel
from dklfm.model import DKLFM, Batch, ForceModel, build_model, load_model

SIZES: dict[str, Any] = {
    "embedding": 8,
    "encoder": {"name": "transformer", "width": 16, "layers": 1, "heads": 2},
    "kernel": {"width": 16, "blocks": 1, "coordinates": 4},
}
X = torch.linspace(0, 1, 7)[None, :, None].expand(2, -1, -1)


def spec(members: int, method: str = "dklfm") -> TrainSpec:
    section = SIZES | {"members": members}
    if method == "dklfm_stream":
        section["name"] = "kernel_route"
    found = {"method": method, "model": section, "training": {"epochs": 3, "batch_size": 8}}
    return validate(TrainSpec, found, "test")


def built(members: int = 3, method: str = "dklfm") -> tuple[ForceModel, list[DKLFM]]:
    torch.manual_seed(0)
    model = build_model(spec(members, method), axes=1, outputs=2).eval()
    return model, [module for module in model.modules() if isinstance(module, DKLFM)]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(2, 2, 9, generator=generator)
    x = torch.rand(2, 9, 1, generator=generator).sort(1).values
    f = torch.randn(2, 9, generator=generator)
    return Batch(x, y, torch.full_like(y, 0.1), torch.ones_like(y, dtype=torch.bool), f)


@pytest.mark.parametrize("method", ["dklfm", "dklfm_stream"])
def test_moments_are_those_of_the_mixture(method: str) -> None:
    model, members = built(method=method)
    assert (model.method, len(members)) == (method, 3)
    found = model.posterior(batch(), X, covariance=True)
    each = [member.posterior(batch(), X, covariance=True) for member in members]
    means = torch.stack([m.force_mean for m in each])
    assert (means.std(0) > 1e-4).all(), "members must start apart for this to show anything"
    torch.testing.assert_close(found.force_mean, means.mean(0))
    second = torch.stack([m.force_variance + m.force_mean**2 for m in each]).mean(0)
    torch.testing.assert_close(found.force_variance, second - means.mean(0) ** 2)
    assert found.force_covariance is not None
    torch.testing.assert_close(
        found.force_covariance.diagonal(dim1=-2, dim2=-1), found.force_variance
    )
    away = means - means.mean(0)
    between = torch.einsum("mtp,mtq->tpq", away, away) / 3
    within = torch.stack([m.force_covariance for m in each if m.force_covariance is not None])
    torch.testing.assert_close(found.force_covariance, within.mean(0) + between)
    assert found.output_mean is not None
    outputs = torch.stack([m.output_mean for m in each if m.output_mean is not None])
    torch.testing.assert_close(found.output_mean, outputs.mean(0))


def test_every_member_is_trained_by_its_own_loss() -> None:
    model, members = built()
    model.loss(batch(), batch(), 1.0).backward()
    together = [p.grad.clone() for p in members[1].parameters() if p.grad is not None]
    model.zero_grad()
    members[1].loss(batch(), batch(), 1.0).backward()
    alone = [p.grad for p in members[1].parameters() if p.grad is not None]
    assert together
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(3 * a, b, atol=2e-3, rtol=1e-3)


def test_scales_are_those_of_all_members() -> None:
    model, members = built()
    assert len(list(model.scales())) == 3 * len(list(members[0].scales())) > 0


def test_it_is_trained_stored_and_infers_as_any_model(tmp_path: Path) -> None:
    simulation = {
        "system": {"name": "transcription", "genes": 2, "steps": 40},
        "tasks": {"counts": {"train": 16, "validation": 8, "test": 4}, "mesh": {"points": 10}},
    }
    tasks = simulate.run(simulation, tmp_path / "tasks")
    training.run(resolved(spec(2)), tasks, tmp_path / "model", simulation=simulation)
    names = [name for name, _ in load_model(tmp_path / "model")[0].named_parameters()]
    assert {name.split(".")[1] for name in names} == {"0", "1"}
    posterior = TrainedModel.load(tmp_path / "model").infer(tasks.split("test"), joint=True)
    assert posterior.data["force_covariance"].shape[0] == 4


def test_one_network_is_what_it_always_was() -> None:
    assert "members" not in resolved(spec(1))["model"]
    names = [name for name, _ in build_model(spec(1), axes=1, outputs=2).named_parameters()]
    assert not any(name.startswith("members") for name in names)
