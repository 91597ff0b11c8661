"""From settings and tasks to a trained, calibrated and stored model; checkpoints on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from scipy.special import stdtrit
from torch import Tensor

from dklfm.artifacts import alone_in, dataset_digest, write_atomically, write_tensors
from dklfm.config import StreamConfig, TrainSpec, canonical_json, resolved, validate
from dklfm.errors import DklfmError
from dklfm.marginals import fit_tails
from dklfm.model import (
    Batch,
    ForceModel,
    GreenLFM,
    ModelCard,
    Scale,
    Statistics,
    Trust,
    choose_device,
    load_model,
    save_model,
)
from dklfm.progress import progress
from dklfm.tasks import Tasks
from dklfm.training.reobserving import ReobservingTrainer
from dklfm.training.stream import StreamTrainer
from dklfm.training.trainer import Trainer

log = logging.getLogger(__name__)
_MOST_SECONDS, _LEAST_SECONDS = 20.0, 1.0
_CHECKPOINT_SHARE = 0.02
"""Of the time that checkpoints may take, between these bounds on what is lost when killed."""
_TRUST_TASKS = 1536, 6144, 2048
"""At least, and at most where a task costs little, or more; in between, as many as were seen."""
_TRUST_FEW = 256
"""Where a task costs tenths of a second."""


def standardised_errors(model: ForceModel, scale: Scale, validation: Tasks) -> Tensor:
    """Of the force at the query points inside the domain, all in one row."""
    low, high = validation.domain
    errors = []
    device = next(model.parameters()).device
    for i in range(len(validation)):
        task = validation.take([i])
        x = task["x_query"][0]
        inside = ((x >= low) & (x <= high)).all(-1)
        queries = scale.inputs(x[None, inside]).to(device)
        moments = model.eval().posterior(Batch.of(task, scale).to(device), queries)
        error = scale.force(task["f"][:, inside]).to(device) - moments.force_mean
        errors.append((error / moments.force_variance.sqrt()).flatten().cpu())
    return torch.cat(errors)


def calibration(errors: Tensor, tails: bool) -> dict[str, float | None]:
    """What must be done to a force's posterior for its 95 % intervals to hold that share.

    Few training tasks leave a model surer than it should be: the variances are scaled by one
    number. With ``tails`` the 50 % intervals are to be right too, by Student marginals.

    Args:
        errors: standardised, of validation tasks.
        tails: whether the marginals may have them.
    """
    if tails:
        factor, df = fit_tails(errors.double().numpy())
        return {"force_variance_factor": factor, "force_df": df if math.isfinite(df) else None}
    half = float(stdtrit(math.inf, 0.975))
    outer = float(errors.square().quantile(0.95))
    return {"force_variance_factor": outer / half**2, "force_df": None}


def learnt_trust(trainer: StreamTrainer) -> Trust:
    """What the tasks of a training look like to its model, and what others do."""

    def seen(contexts: Iterable[Batch]) -> Statistics:
        return Statistics.gathered(trainer.model, trainer.scale, contexts)

    # The same whether the training was interrupted or not, or long over.
    trainer.generator = torch.Generator().manual_seed(trainer.spec.seed)
    least, of_cheap, of_dear = _TRUST_TASKS
    most = of_dear if len(trainer.system.axes) > 1 else of_cheap
    count = min(max(trainer.seen, least), most)
    if isinstance(trainer.model, GreenLFM):
        count = _TRUST_FEW
    known = seen(trainer.contexts(count))
    alike = seen(trainer.contexts(2 * count, first=count))
    # Of some kind there may be none that has a solution.
    kinds = map(list, trainer.strangers(4 * count, first=3 * count))
    strangers = [seen(contexts) for contexts in kinds if contexts]
    return Trust.fit(known, alike, strangers, trainer.spec.seed)


def kind_of_trainer(spec: TrainSpec) -> type[Trainer]:
    """The state that a training with these settings moves through."""
    if isinstance(spec.training, StreamConfig):
        return StreamTrainer
    return ReobservingTrainer if spec.training.reobserve else Trainer


def run(
    spec: Mapping[str, Any],
    tasks: Tasks,
    folder: Path,
    device: str = "cpu",
    simulation: Mapping[str, Any] | None = None,
    simulation_cpu_s: float = 0.0,
    start: Path | None = None,
) -> None:
    """Train a model into ``folder``; a checkpoint of the same settings there is resumed.

    Args:
        spec: plain data of :class:`TrainSpec`.
        tasks: simulated tasks with train and validation splits.
        folder: where weights, history and manifest go.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        simulation: the settings that the tasks were simulated with: a stream goes on with them,
            and those of the system are kept beside the weights.
        simulation_cpu_s: what the tasks cost, kept likewise.
        start: a trained model whose weights and scale this training goes on from.

    Raises:
        DklfmError: if the settings, the tasks or the device cannot be used.
    """
    checked: TrainSpec = validate(TrainSpec, dict(spec), "train")
    chosen = choose_device(device)
    begun = None if start is None else load_model(start, chosen)
    trainer = kind_of_trainer(checked)(tasks, checked, chosen, simulation, begun)
    with alone_in(folder):
        _run(checked, trainer, tasks, folder, simulation or {}, simulation_cpu_s, start)


def _run(
    checked: TrainSpec,
    trainer: Trainer,
    tasks: Tasks,
    folder: Path,
    simulation: Mapping[str, Any],
    simulation_cpu_s: float,
    start: Path | None,
) -> None:
    settings = {"spec": resolved(checked), "tasks": dataset_digest(tasks.data)}
    if start is not None:
        settings["start"] = ModelCard.read(start).digest
    identity = hashlib.sha256(canonical_json(settings).encode()).hexdigest()
    checkpoint = folder / "partial"
    _resume(trainer, checkpoint, identity)
    last, wait = time.monotonic(), _LEAST_SECONDS
    left = range(trainer.epoch, checked.training.epochs)
    for _ in progress(left, "train"):
        trainer.run_epoch()
        row = trainer.history[-1]
        if "validation_loss" in row:
            log.info(
                "epoch %(epoch)d: train loss %(train_loss).4f, validation loss "
                "%(validation_loss).4f, force NLL %(validation_force_nll).4f",
                row,
            )
        if time.monotonic() - last > wait:
            began = time.monotonic()
            _save_checkpoint(trainer, checkpoint, identity)
            last = time.monotonic()
            wait = min(max((last - began) / _CHECKPOINT_SHARE, _LEAST_SECONDS), _MOST_SECONDS)
    if not trainer.best:
        raise DklfmError("training diverged: no validation loss was finite; lower learning_rate")
    trainer.model.load_state_dict(trainer.best)
    history = pd.DataFrame(trainer.history)
    write_atomically(folder / "history.csv", lambda p: history.to_csv(p, index=False))
    errors = standardised_errors(trainer.model, trainer.scale, tasks.split("validation"))
    trust = None
    if isinstance(trainer, StreamTrainer) and checked.strangers:
        trust = learnt_trust(trainer).save(folder)
    save_model(
        folder,
        trainer.model,
        trainer.scale,
        checked,
        system=dict(simulation.get("system", {})),
        outputs=trainer.outputs,
        **calibration(errors, tails=isinstance(trainer, StreamTrainer)),
        simulation_cpu_s=simulation_cpu_s,
        training_cpu_s=trainer.cpu_seconds,
        training_tasks=trainer.seen,
        trust_digest=trust,
        validation_force_nll=-trainer.best_density,
    )
    (checkpoint / "state.safetensors").unlink(missing_ok=True)
    if checkpoint.is_dir():
        checkpoint.rmdir()


def _save_checkpoint(trainer: Trainer, folder: Path, identity: str) -> None:
    tensors, plain = trainer.state()
    metadata = {"identity": identity, "plain": json.dumps(plain)}
    write_tensors(folder / "state.safetensors", tensors, metadata)


def _resume(trainer: Trainer, folder: Path, identity: str) -> None:
    path = folder / "state.safetensors"
    if not path.exists():
        return
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no mapping
    except (OSError, SafetensorError) as error:
        log.warning("the checkpoint %s cannot be read (%s); training starts afresh", path, error)
        return
    if metadata.get("identity") != identity:
        log.warning("the checkpoint %s is of other settings or tasks; training starts afresh", path)
        return
    try:
        trainer.restore(tensors, json.loads(metadata["plain"]))
    except (RuntimeError, KeyError, ValueError) as error:
        raise DklfmError(
            f"the checkpoint {path} was written by another version of dklfm "
            f"({str(error).splitlines()[-1].strip()}); remove it to train afresh"
        ) from None
    log.info("resumed at epoch %d from %s", trainer.epoch, path)
