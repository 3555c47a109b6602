"""A trained posterior: sample, certify, save and load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from invprob import checkpoint, pretrained, registry
from invprob.certificate import Certificate, Scores, carried, certify
from invprob.config import TrainConfig
from invprob.draws import Drawn, Draws, corrected, draw, drawn, known_correction
from invprob.fine_tuned import build
from invprob.likelihood import Likelihood
from invprob.observation import Observation
from invprob.policy import Policy
from invprob.trajectory import Progress, Propose
from invprob.twins import measured_gaps, simulated_twins
from operators.errors import ObservationError, RunError, UnknownName
from priors.base import Prior


@dataclass(frozen=True, eq=False)
class Posterior:
    """A trained posterior p(x | y) of one observation, and of others by `on`."""

    observation: Observation
    prior: Prior
    prior_name: str
    policy: Policy
    certificate: Certificate | None = None
    seconds: float = 0.0  # of training
    gaps: NDArray[np.float64] | None = None  # EUBO - ELBO of simulated twins
    gap_start: float | None = None  # their mean before training

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the observation."""
        return bind(self.observation, self.prior.device)

    @property
    def times(self) -> tuple[float, ...]:
        """The chain's grid of times."""
        return self.prior.schedule.grid(self.policy.settings["steps"])

    def to(self, device: str, precision: str = "float32") -> Self:
        """Move prior and policy, in place, and return this posterior; see `Prior.to`."""
        self.prior.to(device, precision)
        self.policy.to(device)
        return self

    def sample(
        self, n: int, seed: int = 0, correct: str = "auto", oversample: int = 1
    ) -> NDArray[np.float32]:
        """Return n posterior samples (n, *x_shape) in physical units, see `sample_corrected`."""
        return self.sample_corrected(n, seed, correct, oversample=oversample)[0].x

    def draw(
        self, n: int, seed: int = 0, progress: Progress | None = None, smc: bool = False
    ) -> Draws:
        """Return n posterior samples with their path weights, or as weighted particles of SMC."""
        return draw(self.prior, self.likelihood, self._propose, self.times, n, seed, progress, smc)

    def drawn(
        self,
        n: int,
        seed: int,
        progress: Progress | None = None,
        smc: bool = False,
        done: Container[range] = (),
    ) -> Iterator[tuple[range, Draws]]:
        """Yield rows and samples of each batch of `draw` that is this rank's and not `done`."""
        prior, likelihood, times = self.prior, self.likelihood, self.times
        return drawn(prior, likelihood, self._propose, times, n, seed, progress, smc, done)

    def _propose(self, likelihood: Likelihood) -> Propose:
        return self.policy.propose(self.prior, likelihood)

    def certify(self, draws: Scores) -> Certificate:
        """Return the certificate of these draws, with the gap that training left: single paths'."""
        return certify(draws, *((self.gaps, self.gap_start) if draws.island == 1 else ()))

    def on(self, observation: Observation, config: TrainConfig | None = None) -> Posterior:
        """Return the posterior of another observation by the same policy: nothing is trained.

        The policy serves what it was trained for: data of its instrument, or of those that its
        training ranged over. How well is measured on twins simulated with the new instrument, as
        many as `config` says. Raises ObservationError where the prior does not fit, where the
        policy does not read data, or where there are several observations.
        """
        self.refuse_other(observation)
        if len(observation.y) > 1:
            raise ObservationError(
                f"the file holds {len(observation.y)} observations, a posterior is of one: go "
                "through them by observation.each()"
            )
        config = config or TrainConfig()
        twins = simulated_twins(self.prior, self.policy, observation, config)
        gaps = measured_gaps(twins, self.prior, self.policy, config)
        return replace(self, observation=observation, certificate=None, gaps=gaps, gap_start=None)

    def refuse_other(self, observation: Observation) -> None:
        """Raise ObservationError where the policy cannot serve another observation than its own.

        It does not read data, or the observation is of x of another shape.
        """
        self.policy.refuse_other_data()
        if observation.operator.x_shape != self.prior.x_shape:
            raise ObservationError(
                f"this posterior is of x of shape {self.prior.x_shape}, the observation's operator "
                f"takes {observation.operator.x_shape}: train one for it"
            )

    def sample_corrected(
        self,
        n: int,
        seed: int = 0,
        correct: str = "auto",
        progress: Progress | None = None,
        oversample: int = 1,
    ) -> tuple[Draws, Certificate]:
        """Return n samples and their certificate, corrected by one of `CORRECTIONS`.

        "smc" resamples on the way as well, for the others see `corrected`. They are chosen from
        `oversample` times as many draws.
        """
        smc = known_correction(correct, oversample) == "smc"
        draws = self.draw(oversample * n, seed, progress, smc)
        return self.corrected(draws, seed, correct, n)[1:]

    def corrected(
        self, draws: Drawn, seed: int, correct: str, n: int
    ) -> tuple[NDArray[np.int64], Drawn, Certificate]:
        """Return which n of the draws to take, these and their certificate: see `corrected`."""
        index, taken, found = corrected(draws, self.certify(draws), correct, seed, n)
        return index, taken, carried(self.certificate, found) if draws.island > 1 else found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write obs.h5, policy.safetensors and posterior.json to a folder that can be shared."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "posterior.json").unlink(missing_ok=True)  # no card of one beside data of another
        self.observation.write(path / "obs.h5")
        self.save_policy(path)

    def save_policy(self, path: Path) -> None:
        """Write policy.safetensors and posterior.json to a folder that holds the observation.

        Raises RunError where the disk is full.
        """
        from safetensors.torch import save

        state = {name: value.contiguous() for name, value in self.policy.state_dict().items()}
        weights = save(state)
        checkpoint.replace(path / "policy.safetensors", weights)
        card = {
            "version": pretrained.VERSION,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "prior": self.prior_name,
            "prior_sha256": registry.prior_digest(self.prior_name),
            "policy": self.policy.settings,
            "seconds": self.seconds,
            "certificate": asdict(self.certificate) if self.certificate else None,
            "gaps": None if self.gaps is None else self.gaps.tolist(),
        }
        checkpoint.replace(path / "posterior.json", f"{json.dumps(card, indent=1)}\n".encode())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, operator: str | None = None, prior: str | None = None
    ) -> Posterior:
        """Read what `save_pretrained` wrote; raises RunError where that is not whole.

        No code named in the folder is run: a posterior with the user's own operator or prior
        needs its `file.py:Class` given here. Raises UnknownName on another prior than its own,
        and what `invprob.pretrained` raises.
        """
        path = Path(folder)
        card = pretrained.read_card(path)
        observation = Observation.read(path / "obs.h5", operator, card["prior"]).one(0)
        name = prior or card["prior"]
        if prior is None and ":" in name:
            raise RunError(
                f"{path.name} was trained with the prior {name}, the user's own: name it, --prior"
            )
        if not same_prior(name, card["prior"]):
            raise UnknownName(
                f"{path.name} was trained with the prior {card['prior']}, not {name}: "
                "leave --prior out, or train with that one"
            )
        loaded = registry.load_prior(name, observation.operator.x_shape)
        if card.get("prior_sha256") not in (None, registry.prior_digest(name)):
            raise UnknownName(
                f"{path.name} was trained with another prior named {card['prior']} than {name} is "
                "now: name its folder, --prior, or train with this one"
            )
        policy = build(loaded, TrainConfig(**card["policy"]))
        pretrained.load_weights(policy, path / "policy.safetensors", card.get("sha256"))
        known = card["certificate"]
        certificate = Certificate(**known) if known else None
        gaps = None if card.get("gaps") is None else np.array(card["gaps"])
        start = certificate.gap_start if certificate else None
        return cls(observation, loaded, name, policy, certificate, card["seconds"], gaps, start)


def bind(observation: Observation, device: torch.device | str = "cpu") -> Likelihood:
    """Return the likelihood of an observation, its data on a device."""
    return Likelihood(observation.operator, observation.noise, observation.y.to(device))


def same_prior(one: str, other: str) -> bool:
    """Return whether two names are of one prior, wherever the folder or file lies."""
    one, other = (Path(name).name.replace("-", "_") for name in (one, other))
    return one == other


def resolve_prior(observation: Observation, prior: str | None) -> tuple[str, Prior]:
    """Return the prior asked for, else the observation's, else the operator's default."""
    name = prior or observation.prior or observation.operator.default_prior
    try:
        loaded = registry.load_prior(name, observation.operator.x_shape)
    except UnknownName as error:
        if prior or not observation.prior:
            raise
        raise UnknownName(
            f"the observation suggests the prior {name!r}, which is not found from here: give "
            "--prior PATH"
        ) from error
    if loaded.x_shape != observation.operator.x_shape:
        raise ObservationError(
            f"prior {name!r} draws x of shape {loaded.x_shape}, the operator needs "
            f"{observation.operator.x_shape}: choose another prior, or simulate with that shape"
        )
    return name, loaded
