"""Settings of a training. Importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from operators.errors import ObservationError, UnknownName, refuse_below

OBJECTIVES = ("vargrad", "rtb", "trust_pcl")  # where log Z is from, see `invprob.rtb`
DEPTHS = ("uniform", "adaptive")
POLICIES = ("guided", "lora", "full")  # see `invprob.policy` and `invprob.fine_tuned`
# what `--quality` asks for: a first look, minutes, and most of an hour on a 64x64 lens
QUALITIES: dict[str, dict[str, Any]] = {
    "draft": {"warm_steps": 50, "rtb_steps": 2, "pairs": 8},
    "default": {},
    "high": {"finer": 2, "warm_steps": 400, "rtb_steps": 8},
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training; the defaults fit a 64x64 lens on a laptop in minutes."""

    steps: int | None = None  # of the chain; None: the prior's own, times `finer`
    finer: int = 1
    policy: str = "guided"  # of POLICIES; lora and full fine-tune the prior's own network
    width: int = 64  # of the guided policy's network
    blocks: int = 3
    rank: int = 8  # of the adapters of lora
    pairs: int = 32  # simulated at 12 noise levels to see where denoising a shift helps; 0: none
    guidance: float = 0.0  # share of the guided shift that lora and full begin with
    warm_steps: int = 100  # of a policy that reads data; one without guidance has no warm start
    warm_batch: int = 32
    warm_times: int = 4  # noise levels met in one warm-start batch
    warm_rate: float = 1e-3
    warm_floor: float = 0.2  # share of the weight that every noise level gets alike
    rtb_steps: int = 4
    paths: int = 16  # K: rollouts per RTB step
    rtb_rate: float = 2e-4
    loss_scale: float = 10.0  # log w - log Z is squashed by c tanh(./c): caps a path's pull
    objective: str = "vargrad"  # of OBJECTIVES: where log Z is from
    log_z_rate: float = 0.1  # of a learned log Z: its step, as a share of the mean gap
    replay: float = 0.0  # share of the paths that are stored ones, drawn by rank
    backtrack: float = 0.0  # share that goes back from a stored z_0 and down again
    depth: str = "uniform"  # of DEPTHS: how far back; adaptive: where the loss was large
    local_search: int = 0  # MALA steps on z_0 before it goes back
    prior_paths: float = 0.0  # share that are chains of the prior
    exploration: float = 1.0  # noise of the fresh paths at first, in standard deviations; ends at 1
    anneal: float = 1.0  # temperature T of the likelihood at first; it falls to 1 as ESS allows
    ema: float = 0.99  # of the policy's weights
    bank: int = 2048  # prior draws met in the warm start
    seed: int = 0
    checkpoint_every: int = 50
    max_bad_steps: int = 5  # non-finite losses before training stops
    certified: int = 64  # samples behind the certificate
    twins: int = 8  # simulated observations behind its EUBO - ELBO gap
    twin_paths: int = 2  # rollouts of each: twins differ more than these

    def __post_init__(self) -> None:
        numbers = (f.name for f in fields(self) if f.type in ("int", "float"))
        special = {
            "steps": 2,
            "finer": 1,
            "width": 8,
            "rank": 1,
            "warm_batch": self.warm_times,
            "warm_times": 1,
            "paths": 2,
            "bank": 1,
            "checkpoint_every": 1,
            "certified": 2,
            "twins": 2,
            "twin_paths": 1,
            "loss_scale": 1e-3,
            "exploration": 1,
            "anneal": 1,
        }
        refuse_below(self, dict.fromkeys(numbers, 0) | special)
        for name, known in (("objective", OBJECTIVES), ("depth", DEPTHS), ("policy", POLICIES)):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise UnknownName(f"no {name} {found!r}: choose {', '.join(known)}")
        shares = (self.replay, self.backtrack, self.prior_paths)
        fresh = self.paths - sum(round(share * self.paths) for share in shares)
        if fresh < 2:
            raise ObservationError(
                f"replay, backtrack and prior_paths leave {fresh} of {self.paths} paths to the "
                "policy: it needs at least 2"
            )
        if self.local_search and not self.backtrack:
            raise ObservationError("local_search moves what goes back: set backtrack > 0 with it")
        if self.pairs == 1:
            raise ObservationError("pairs must be 0 or at least 2, found 1")
        if self.width % 8:
            raise ObservationError(f"width must be a multiple of 8, found {self.width}")

    def of_quality(self, quality: str) -> TrainConfig:
        """Return these settings with those of one of `QUALITIES`; raises UnknownName."""
        if quality not in QUALITIES:
            raise UnknownName(f"no quality {quality!r}: choose {', '.join(QUALITIES)}")
        return replace(self, **QUALITIES[quality])

    def chain_steps(self, own: int) -> int:
        """Return the steps of the chain, for a prior that takes `own` of itself."""
        return self.steps or self.finer * own

    @property
    def stored(self) -> float:
        """Share of the paths that come from the buffer of earlier ones."""
        return self.replay + self.backtrack
