"""Measuring in rounds, on simulated engines and a simulated clock."""

from __future__ import annotations

import numpy as np
import pytest

from optimc.core.errors import WorkerCrashedError
from optimc.measure.latency import (
    SamplingPlan,
    SubjectFailed,
    Timings,
    measure,
)
from optimc.measure.statistics import Interval, Percentile
from optimc.testing.simulated import Clock, Engine, bimodal, drifting, skewed


def pair(seed, noise, ratio=1.3, **options):
    clock = Clock()
    fast = Engine(clock, 1.0, seed=2 * seed, noise=noise, **options)
    slow = Engine(clock, ratio, seed=2 * seed + 1, noise=noise, **options)
    return clock, {"cell": fast, "source": slow}


def speedup(timings: Timings) -> Interval:
    interval = timings.ratio("cell", "source")
    assert isinstance(interval, Interval), interval
    return interval


@pytest.mark.parametrize("noise", [skewed, drifting, bimodal])
def test_speedups_cover_at_their_level(noise):
    intervals = []
    for seed in range(150):
        clock, subjects = pair(seed, noise)
        timings = measure(subjects, SamplingPlan(at_most_s=2), seed=seed, clock=clock)
        intervals.append(speedup(timings))
    # 95 %, less what 150 trials may miss by chance (1.8 % is one standard deviation).
    assert np.mean([i.ci95[0] <= 1.3 <= i.ci95[1] for i in intervals]) >= 0.90
    assert np.mean([i.lower <= 1.3 for i in intervals]) >= 0.89
    assert np.mean([i.upper >= 1.3 for i in intervals]) >= 0.89
    assert np.median([i.ci95[1] / i.ci95[0] for i in intervals]) < 1.04


def test_stopping_when_decided_does_not_cost_coverage():
    """A limit next to the truth: who stops at the first good look must still be right."""
    wrong, early = 0, 0
    for seed in range(100):
        clock, subjects = pair(seed, skewed)
        timings = measure(
            subjects,
            SamplingPlan(at_most_s=3),
            decided=lambda t: speedup(t).lower > 1.3 or speedup(t).upper < 1.3,
            seed=seed,
            clock=clock,
        )
        wrong += not speedup(timings).lower <= 1.3 <= speedup(timings).upper
        early += timings.stopped == "decided"
    # Each end may be wrong in 5 % of cases: 10 of 100, and 3 more for each standard deviation.
    assert wrong <= 20
    assert early >= 1


def test_a_clear_case_stops_early_and_an_unclear_one_uses_the_time():
    clock, subjects = pair(1, skewed)
    plan = SamplingPlan(at_most_s=30)
    clear = measure(subjects, plan, decided=lambda t: speedup(t).lower > 1.1, clock=clock)
    assert clear.stopped == "decided"
    assert clear.seconds < 8
    assert clear.rounds >= plan.min_rounds
    clock, subjects = pair(1, skewed)
    unclear = measure(subjects, plan, decided=lambda t: False, clock=clock)
    assert unclear.stopped == "time is up"
    assert 25 < unclear.seconds <= 30
    assert len(unclear.looks) == 4
    assert unclear.looks[-1].share == 1.0


def test_looks_cost_precision_only_where_there_are_some():
    clock, subjects = pair(3, skewed)
    silent = measure(subjects, SamplingPlan(at_most_s=5), clock=clock)
    clock, subjects = pair(3, skewed)
    looked = measure(subjects, SamplingPlan(at_most_s=5), decided=lambda t: False, clock=clock)
    assert len(silent.looks) == 1
    assert speedup(silent).point == speedup(looked).point
    assert speedup(silent).ci95[0] > speedup(looked).ci95[0]


def test_the_time_is_kept_to_within_a_round():
    clock = Clock()
    subjects = {str(n): Engine(clock, 5.0 * (n + 1), seed=n, load_ms=300) for n in range(7)}
    timings = measure(subjects, SamplingPlan(at_most_s=10), clock=clock)
    assert timings.seconds <= 10
    assert timings.rounds >= 2


def test_the_first_round_is_finished_even_where_there_is_no_time():
    clock, subjects = pair(0, skewed, ratio=2.0)
    timings = measure(subjects, SamplingPlan(at_most_s=0.01), clock=clock)
    assert timings.rounds == 1
    assert timings.ratio("cell", "source") == (
        "needs 2 rounds of fresh sessions, has 1: allow more time"
    )


def test_slow_engines_are_not_warmed_up_for_long():
    clock, subjects = pair(0, None, ratio=2.0)
    for engine in subjects.values():
        engine.milliseconds *= 1000
    timings = measure(subjects, SamplingPlan(at_most_s=60), clock=clock)
    assert timings.seconds <= 60
    assert timings.rounds >= 3
    assert speedup(timings).point == pytest.approx(2.0, rel=0.02)


def test_every_round_opens_a_fresh_session_of_each():
    clock, subjects = pair(0, skewed)
    timings = measure(subjects, SamplingPlan(at_most_s=3), clock=clock)
    assert {engine.opened for engine in subjects.values()} == {timings.rounds}
    assert timings.latency("cell").load_ms == (20.0,) * timings.rounds


def test_cold_runs_are_not_counted():
    clock, subjects = pair(0, None, luck=0.0)
    timings = measure(subjects, SamplingPlan(at_most_s=3), clock=clock)
    for rounds in timings.samples["cell"]:
        assert np.all(rounds == 1_000_000)


def test_orders_and_results_repeat_with_the_seed():
    def run(seed):
        clock, subjects = pair(0, skewed)
        timings = measure(subjects, SamplingPlan(at_most_s=2), seed=seed, clock=clock)
        return timings.samples["cell"][0].tolist()

    assert run(1) == run(1)


def test_percentiles_and_the_noise_floor():
    clock = Clock()
    subjects = {
        name: Engine(clock, 1.0, seed=n, noise=skewed) for n, name in enumerate(["source", "again"])
    }
    timings = measure(subjects, SamplingPlan(at_most_s=6), clock=clock)
    floor = timings.ratio("again", "source")
    assert isinstance(floor, Interval)
    assert floor.ci95[0] < 1 < floor.ci95[1]
    latency = timings.latency("source")
    assert isinstance(latency.p50, Percentile)
    assert isinstance(latency.p99, Percentile)
    assert 1.0 < latency.p50.ms < latency.p99.ms < 1.6
    assert latency.p99.runs == latency.runs >= 500


def test_too_few_runs_skip_the_high_percentiles():
    clock, subjects = pair(0, skewed)
    for engine in subjects.values():
        engine.milliseconds *= 100
    latency = measure(subjects, SamplingPlan(at_most_s=10), clock=clock).latency("cell")
    assert latency.p99 == f"needs 500 runs, has {latency.runs}"


def test_a_failing_worker_is_named():
    clock, subjects = pair(0, skewed)

    def crash(runs):
        raise WorkerCrashedError("the worker died by SIGSEGV", fix="try another target")

    subjects["cell"].time_block = crash
    with pytest.raises(SubjectFailed, match="cell: the worker died by SIGSEGV") as failure:
        measure(subjects, SamplingPlan(at_most_s=1), clock=clock)
    assert failure.value.subject == "cell"
    assert failure.value.fix == "try another target"


def test_progress_tells_rounds_and_seconds():
    clock, subjects = pair(0, skewed)
    told: list[tuple[int, float]] = []
    timings = measure(
        subjects,
        SamplingPlan(at_most_s=2),
        progress=lambda rounds, seconds: told.append((rounds, seconds)),
        clock=clock,
    )
    assert [rounds for rounds, _ in told] == list(range(1, timings.rounds + 1))
    assert told[-1][1] == timings.seconds


@pytest.mark.parametrize("looks", [(0.5, 0.2), (0.0,), (0.5, 1.0)])
def test_impossible_looks_are_refused(looks):
    with pytest.raises(ValueError, match="rise between 0 and 1"):
        SamplingPlan(looks=looks)
