"""From an observation to its certified posterior, by RTB.

obs = invprob.Observation.read("obs.h5")
posterior = invprob.train(obs, prior="galaxies-64")
x = posterior.sample(64, seed=0)
posterior.certificate
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from invprob import distributed
from invprob.config import TrainConfig
from invprob.instruments import Instruments
from invprob.observation import Observation
from invprob.posterior import Posterior, bind, resolve_prior
from invprob.rtb import Trainer
from invprob.run import Run
from invprob.trajectory import Progress
from invprob.twins import Twins, measured_gaps, simulated_twins
from operators.errors import NumericalError


class Interrupted(Exception):
    """Training was asked to stop; the last finished step is saved."""


def train(
    observation: Observation,
    prior: str | None = None,
    config: TrainConfig | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    ranges: Mapping[str, Any] | None = None,
    start: Posterior | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Posterior:
    """Return the RTB posterior of an observation, with its certificate.

    Of several observations in one file RTB takes one after the other, and the certificate is that
    of the first. ranges: of the parameters of the instrument, see `invprob.instruments`: the policy
    is then amortised over them, RTB too is on simulated data, and the twins behind the certificate
    have instruments of their own. start: a posterior whose policy is trained further.

    With a `run`, checkpoints go there and an interrupted training continues from the last one.
    Setting `stop` ends it after the current step by `Interrupted`, with everything saved.
    device, precision: see `Prior.to`. Ranks that have joined (`invprob.distributed`) share the
    batches; a checkpoint may go on with another number of them.
    """
    config = config or TrainConfig()
    name, loaded = resolve_prior(observation, prior)
    loaded.to(device, precision)
    instruments = Instruments(observation, ranges) if ranges else None
    trainer = Trainer(loaded, bind(observation, device), config, instruments)
    state = distributed.from_first(lambda: run.load_checkpoint() if run else None)
    kept = run if distributed.rank() == 0 else None  # one rank writes
    if state is not None:
        trainer.load(state["trainer"])
    elif start is not None:
        trainer.start_from(start.policy)
    else:
        trainer.calibrate()
    twins: list[Twins] = []  # they say nothing of a policy that knows the real data alone
    if trainer.policy.reads_data:
        twins = simulated_twins(loaded, trainer.average, observation, config, instruments)
    if state is None:
        before = measured_gaps(twins, loaded, trainer.average, config)
        gap_start = None if before is None else float(before.mean())
        seconds = 0.0
    else:
        gap_start, seconds = state["gap_start"], state["seconds"]
    begun = time.monotonic() - seconds

    def save() -> None:
        if kept:
            facts: dict[str, Any] = {"trainer": trainer.state(), "gap_start": gap_start}
            kept.save_checkpoint(facts | {"seconds": time.monotonic() - begun})

    while trainer.step < trainer.total:
        if distributed.total(stop is not None and stop.is_set()):
            save()
            raise Interrupted(f"stopped after step {trainer.step} of {trainer.total}")
        try:
            figures = trainer.advance()
        except NumericalError:
            save()
            raise
        stage = "warm start" if trainer.step <= trainer.config.warm_steps else "RTB"
        if kept:
            kept.append_metrics({"step": trainer.step, "stage": stage, **figures})
        if progress:
            progress(stage, trainer.step, trainer.total, figures)
        if trainer.step % config.checkpoint_every == 0 or trainer.step == trainer.total:
            save()
    seconds = time.monotonic() - begun
    gaps = measured_gaps(twins, loaded, trainer.average, config)
    posterior = Posterior(
        observation.one(0), loaded, name, trainer.average, None, seconds, gaps, gap_start
    )
    draws = posterior.draw(config.certified, config.seed + 2, progress)
    posterior = replace(posterior, certificate=posterior.certify(draws))
    if kept:
        posterior.save_policy(kept.path)
    return posterior
