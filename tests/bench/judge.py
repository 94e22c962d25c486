"""Our judge, Kayenta's rule and a fixed threshold, side by side on the same seeded requests.

- **ours**: the tests of ``domain.sequential`` that ``domain.judge.Trial`` runs, with the threshold
  that it uses when two tests share an alpha of 1 %. It looks after every error (and at the end of
  every minute), or once a minute where latencies are judged.
- **kayenta**: the published rule on one point a minute, judged ten times on a growing window, as
  its intervals are. On the first ``PEER_TRIALS`` of the same trials, because it is slow.
- **fixed**: the canary's own error rate above 1 % in a minute (or its p95 above 500 ms), and the
  candidate goes back at the fifth such minute, as an Argo or Flagger user writes it.

A minute is ``MINUTE`` requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import kayenta
import numpy as np
import numpy.typing as npt
from bench import Case

from domain.judge import Limits
from domain.sequential import Shares, Slowness

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEED = 20220514
TRIALS = 2000
PEER_TRIALS = 500
MINUTE = 1000
MINUTES = 200
BASE = 0.001
ALARM = math.log(2 / Limits().alpha)
FIXED_RATE = 0.01
FIXED_SECONDS = 0.5
FIXED_FAILURES = 5
JUDGED = 10
"""Judgements of Kayenta over one trial."""

SIGMA = 0.5
"""Of the log-normal latencies; the median is 0.1 s."""

MEDIAN_SECONDS = 0.1
TIMED_MINUTE = 200
SCALE_MINUTE = 100
SCALES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
STRETCH = 1 + math.log(1.3) / (1.6448536 * SIGMA)
"""Of the upper half of the log-latencies: p95 up 30 %, the median where it was."""

NEVER = np.inf


@dataclass
class Found:
    """After how many requests each trial was stopped; infinity: never."""

    ours: Floats
    kayenta: Floats
    fixed: Floats

    def rules(self) -> dict[str, Floats]:
        return {"ours": self.ours, "kayenta": self.kayenta, "fixed": self.fixed}


def run() -> list[Case]:
    tenfold, fiftyfold = errors(0.05, 10), errors(0.05, 50)
    twofold = errors(0.5, 2)
    within = "AR(1) 0.7 from request to request"
    across = "AR(1) 0.7 from minute to minute"
    return [
        stopped("A/A errors, canary 5 %", errors(0.05, 1), at_most=1),
        stopped("A/A errors, canary 50 %", errors(0.5, 1), at_most=1),
        stopped(f"A/A latency, {within}, canary 5 %", latencies(0.05), at_most=1),
        stopped(f"A/A latency, {within}, canary 50 %", latencies(0.5), at_most=1),
        stopped(f"A/A latency, {across}, canary 50 %", latencies(0.5, wander=0.3), at_most=1),
        stopped("10 times the errors, canary 5 %", tenfold, at_least=100),
        requests("10 times the errors, canary 5 %", tenfold, 15_000),
        requests("50 times the errors, canary 5 %", fiftyfold, 2_500),
        stopped("2 times the errors, canary 50 %", twofold, at_least=98),
        requests("2 times the errors, canary 50 %", twofold, 80_000),
        *scales(),
        speed(),
    ]


def stopped(
    name: str, found: Found, *, at_most: float | None = None, at_least: float | None = None
) -> Case:
    shares = {rule: 100 * float(np.isfinite(at).mean()) for rule, at in found.rules().items()}
    ours = shares.pop("ours")
    goal = f"at most {at_most} %" if at_most is not None else f"at least {at_least} %"
    met = ours <= at_most if at_most is not None else ours >= (at_least or 0)
    note = f"{len(found.ours)} trials of {MINUTES} minutes, peers {len(found.kayenta)}"
    peers = {rule: round(share, 3) for rule, share in shares.items()}
    return Case(f"{name}: ever stopped", "%", goal, round(ours, 3), peers, met, note=note)


def requests(name: str, found: Found, most: int) -> Case:
    """The median over all trials; a rule that stops fewer than half has none."""
    medians = {rule: float(np.median(at)) for rule, at in found.rules().items()}
    ours = medians.pop("ours")
    never = [rule for rule, median in medians.items() if not math.isfinite(median)]
    return Case(
        f"{name}: requests of both until stopped", "requests (median)", f"at most {most}",
        ours if math.isfinite(ours) else None,
        {rule: median for rule, median in medians.items() if math.isfinite(median)},
        ours <= most,
        {rule: spread(at) for rule, at in found.rules().items()},
        f"{', '.join(never)} stopped fewer than half" if never else "",
    )  # fmt: skip


def spread(at: Floats) -> list[float]:
    """Quartiles of those that were stopped."""
    stopped_at = at[np.isfinite(at)]
    return [float(q) for q in np.quantile(stopped_at, (0.25, 0.5, 0.75))] if len(stopped_at) else []


# --- errors -----------------------------------------------------------------------------------


def errors(share: float, ratio: float) -> Found:
    """``MINUTES`` minutes in which the candidate has ``ratio`` times the errors of stable."""
    random = np.random.default_rng(SEED)
    shares, ours = Shares(TRIALS), np.full(TRIALS, NEVER)
    minutes: list[Ints] = []
    for minute in range(MINUTES):
        asked = random.binomial(MINUTE, share, TRIALS)
        erred = random.binomial(asked, BASE * ratio)
        other = random.binomial(MINUTE - asked, BASE)
        counted = np.stack([erred, asked, other, MINUTE - asked])
        minutes.append(counted)
        for seen, gained in looks(random, counted):
            shares.add(gained)
            new = (shares.log_peak >= ALARM) & ~np.isfinite(ours)
            ours[new] = minute * MINUTE + seen[new]
    series = np.stack(minutes).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates, stable = series[:, 0] / series[:, 1], series[:, 2] / series[:, 3]
    return Found(ours, by_kayenta(rates, stable, MINUTE), by_fixed(rates > FIXED_RATE, MINUTE))


def looks(random: np.random.Generator, counted: Ints) -> Iterator[tuple[Ints, Ints]]:
    """One minute cut after each of its errors: requests seen by then, and the gain of each look.

    Errors fall at random places and go to the arms in random order, as many to each as counted.
    """
    left = counted.copy()
    all_errors = counted[0] + counted[2]
    most = int(all_errors.max())
    places = np.where(np.arange(most) < all_errors[:, None], random.random((TRIALS, most)), 1.0)
    good = MINUTE - all_errors
    before = np.floor(np.sort(places, axis=1) * (good[:, None] + 1)).astype(np.int64)
    before = np.minimum(before, good[:, None])
    seen = np.zeros(TRIALS, dtype=np.int64)
    done = np.zeros(TRIALS, dtype=np.int64)
    for number in range(most):
        live = number < all_errors
        length = np.where(live, before[:, number] - done, 0)
        done += length
        mine = random.hypergeometric(left[1] - left[0], left[3] - left[2], length)
        owed = left[0] + left[2]
        is_mine = live & (random.random(TRIALS) * np.maximum(owed, 1) < left[0])
        is_other = live & ~is_mine
        gained = np.stack([is_mine, mine + is_mine, is_other, length - mine + is_other])
        left -= gained
        seen += length + live
        yield seen, gained
    yield np.full(TRIALS, MINUTE), left


# --- latencies --------------------------------------------------------------------------------


def latencies(share: float, wander: float = 0.0) -> Found:
    """An A/A trial whose log-latencies follow an AR(1) of 0.7.

    ``wander`` moves each arm's level by that many sigma from minute to minute, as an AR(1) of 0.7
    of its own; the requests of a minute are then independent.
    """
    times = Times(np.random.default_rng(SEED), TRIALS, 0.0 if wander else 0.7, wander)
    slowness = Slowness(log_bounds().tolist(), TRIALS)
    asked = round(TIMED_MINUTE * share), TIMED_MINUTE - round(TIMED_MINUTE * share)
    ours, p95s = np.full(TRIALS, NEVER), []
    for minute in range(MINUTES):
        deviates = times.next(asked)
        slowness.add(*compared(deviates, log_bounds()))
        new = (slowness.log_peak >= ALARM) & ~np.isfinite(ours)
        ours[new] = (minute + 1) * TIMED_MINUTE
        p95s.append([p95(arm[:PEER_TRIALS]) for arm in deviates])
    series = np.array(p95s)
    slow = series[:, 0] > FIXED_SECONDS
    return Found(
        ours,
        by_kayenta(series[:, 0], series[:, 1], TIMED_MINUTE),
        by_fixed(slow, TIMED_MINUTE),
    )


class Times:
    """Standard normal deviates of log-latency, an AR(1) in each arm of each trial."""

    def __init__(
        self, random: np.random.Generator, trials: int, correlation: float, wander: float
    ) -> None:
        self.random, self.trials = random, trials
        self.correlation, self.wander = correlation, wander
        self.last = random.standard_normal((2, trials))
        self.level = random.standard_normal((2, trials))

    def next(self, asked: tuple[int, int]) -> list[Floats]:
        """The deviates of one minute by arm, each (trials, requests)."""
        fresh = self.random.standard_normal((2, self.trials))
        self.level = 0.7 * self.level + math.sqrt(1 - 0.7**2) * fresh
        minute = []
        for arm, count in enumerate(asked):
            own = self._chain(count, self.last[arm])
            self.last[arm] = own[:, -1]
            minute.append(own + self.wander * self.level[arm][:, None])
        return minute

    def _chain(self, count: int, last: Floats) -> Floats:
        fresh = self.random.standard_normal((self.trials, count))
        if self.correlation == 0:
            return fresh
        lag = np.subtract.outer(np.arange(count), np.arange(count))
        weights = np.where(lag >= 0, self.correlation ** np.abs(lag), 0.0)
        fresh = fresh @ (weights.T * math.sqrt(1 - self.correlation**2))
        return fresh + last[:, None] * self.correlation ** np.arange(1, count + 1)


def log_bounds() -> Floats:
    """Bucket bounds as deviates: each 1.4 times the one before, around the median."""
    return np.log(1.4) * np.arange(-8, 12) / SIGMA


def compared(deviates: list[Floats], bounds: Floats) -> tuple[Ints, Ints]:
    """What ``Slowness.add`` takes, counted into buckets."""
    asked = np.stack([np.full(len(arm), arm.shape[1], dtype=np.int64) for arm in deviates])
    slower = np.stack([np.stack([(arm > b).sum(axis=1) for b in bounds], -1) for arm in deviates])
    return asked, slower


def seconds(deviates: Floats, scale: float = MEDIAN_SECONDS) -> Floats:
    return np.asarray(scale * np.exp(SIGMA * deviates))


def p95(deviates: Floats, scale: float = MEDIAN_SECONDS) -> Floats:
    return seconds(np.quantile(deviates, 0.95, axis=1), scale)


def scales() -> list[Case]:
    """The same slowdown at every scale; requests follow an AR(1) of 0.7 in each arm."""
    found = {scale: slowdown(scale) for scale in SCALES}
    shares: dict[str, list[float]] = {}
    for rules in found.values():
        for rule, at in rules.rules().items():
            shares.setdefault(rule, []).append(round(100 * float(np.isfinite(at).mean()), 2))
    apart = {rule: round(max(values) - min(values), 2) for rule, values in shares.items()}
    worst = {rule: min(values) for rule, values in shares.items()}
    name = "p95 up 30 %, median unchanged, scales 1e-6 to 10 s, canary 50 %"
    median = float(np.median(found[1.0].ours))
    note = f"{PEER_TRIALS} trials of {MINUTES} minutes of {SCALE_MINUTE}; ours median {median:.0f}"
    return [
        Case(f"{name}: best less worst scale", "points", "0", apart.pop("ours"), apart,
             apart_met(shares["ours"]), dict(shares), note),
        Case(f"{name}: stopped at the worst scale", "%", "at least 98 %", worst.pop("ours"), worst,
             min(shares["ours"]) >= 98, note="a rule that stops a candidate may do so for no "
             "reason: fixed stops any at 10 s"),
    ]  # fmt: skip


def apart_met(shares: list[float]) -> bool:
    return max(shares) == min(shares)


def slowdown(scale: float) -> Found:
    times = Times(np.random.default_rng(SEED), PEER_TRIALS, 0.7, 0.0)
    bounds = scale * 1.4 ** np.arange(-8.0, 12.0)
    slowness, half = Slowness(bounds.tolist(), PEER_TRIALS), SCALE_MINUTE // 2
    ours, p95s = np.full(PEER_TRIALS, NEVER), []
    for minute in range(MINUTES):
        candidate, stable = times.next((half, half))
        candidate = np.where(candidate > 0, candidate * STRETCH, candidate)
        slowness.add(*compared([seconds(candidate, scale), seconds(stable, scale)], bounds))
        new = (slowness.log_peak >= ALARM) & ~np.isfinite(ours)
        ours[new] = (minute + 1) * SCALE_MINUTE
        p95s.append([p95(arm, scale) for arm in (candidate, stable)])
    series = np.array(p95s)
    return Found(
        ours,
        by_kayenta(series[:, 0], series[:, 1], SCALE_MINUTE),
        by_fixed(series[:, 0] > FIXED_SECONDS, SCALE_MINUTE),
    )


# --- the peers --------------------------------------------------------------------------------


def by_kayenta(candidate: Floats, stable: Floats, minute: int) -> Floats:
    """Requests until the first of ``JUDGED`` judgements that is High; (minutes, trials)."""
    found = np.full(PEER_TRIALS, NEVER)
    ends = [len(candidate) * (k + 1) // JUDGED for k in range(JUDGED)]
    for trial in range(PEER_TRIALS):
        for end in ends:
            if kayenta.high(candidate[:end, trial], stable[:end, trial]):
                found[trial] = end * minute
                break
    return found


def by_fixed(breached: npt.NDArray[np.bool_], minute: int) -> Floats:
    """Requests until the fifth minute that breaks the limit; (minutes, trials)."""
    failures = breached[:, :PEER_TRIALS].cumsum(axis=0)
    over = failures >= FIXED_FAILURES
    return np.where(over.any(axis=0), (over.argmax(axis=0) + 1.0) * minute, NEVER)


# --- speed ------------------------------------------------------------------------------------


def speed(metrics: int = 1000, points: int = 10_000) -> Case:
    """Error counts of both arms at every point; ours has a verdict at each, the peers one."""
    random = np.random.default_rng(SEED)
    asked = np.full((points, metrics), 50, dtype=np.int64)
    gained = np.stack(
        [random.binomial(asked, BASE), asked, random.binomial(asked, BASE), asked], axis=1
    )
    times = []
    for _ in range(3):
        shares = Shares(metrics)
        began = time.perf_counter()
        for point in gained:
            shares.add(point)
        alarms = int((shares.log_peak >= ALARM).sum())
        times.append(round(time.perf_counter() - began, 3))
    rates = gained[:, 0, :5] / 50.0, gained[:, 2, :5] / 50.0
    began = time.perf_counter()
    for metric in range(5):
        kayenta.high(rates[0][:, metric], rates[1][:, metric])
    peer = (time.perf_counter() - began) / 5 * metrics
    began = time.perf_counter()
    by_fixed(gained[:, 0] / asked > FIXED_RATE, 1)
    fixed = time.perf_counter() - began
    ours = float(np.median(times))
    note = f"a verdict at every point, {alarms} alarms; kayenta: one, from 5 metrics"
    peers = {"kayenta": round(peer, 1), "fixed": round(fixed, 3)}
    name = f"{metrics} metrics of {points} points judged"
    return Case(name, "seconds", "under 1", ours, peers, ours < 1, {"ours": times}, note)
