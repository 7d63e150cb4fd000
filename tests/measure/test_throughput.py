"""Throughput: as many streams as the cores have room for, all at once."""

from __future__ import annotations

import threading
import time

import pytest

from optimc.measure.throughput import measure_throughput, streams_for
from optimc.targets.service import numbered, run_streams, unnumbered


@pytest.mark.parametrize(
    ("threads", "cores", "streams"), [(1, 8, 8), (3, 8, 2), (16, 8, 1), (0, 8, 1)]
)
def test_streams_fill_the_cores(threads, cores, streams):
    assert streams_for(threads, cores) == streams


class Streaming:
    def __init__(self):
        self.asked = []

    def throughput(self, streams, seconds):
        self.asked.append(streams)
        return 100 * streams, 0.5


def test_samples_of_all_streams_count():
    engine = Streaming()
    found = measure_throughput(engine, threads=1, cores=4, batch=8)
    assert found.per_s.point == pytest.approx(4 * 100 * 8 / 0.5)
    assert (found.streams, found.threads, found.batch) == (4, 1, 8)
    assert set(engine.asked) == {4}


def test_streams_run_at_the_same_time():
    """Two that wait for each other would hang one after the other."""
    meet = threading.Barrier(2, timeout=30)
    counted = [0, 0]

    def stream(number):
        def run():
            counted[number] += 1
            if counted[number] == 2:  # the first is the warm-up
                meet.wait()

        return run

    runs, spent = run_streams([[stream(0)], [stream(1)]], 0.0)
    assert runs == 2
    assert spent > 0


def test_a_failing_stream_is_told():
    def fail():
        raise ValueError("no such session")

    with pytest.raises(ValueError, match="no such session"):
        run_streams([[fail]], 0.01)


def test_streams_go_on_until_the_time_is_up():
    runs, spent = run_streams([[lambda: time.sleep(0.005)]], 0.05)
    assert runs >= 2
    assert spent >= 0.05


def test_feeds_are_numbered_and_back():
    feeds = [{"x": 1, "a:b": 2}, {"x": 3}]
    assert unnumbered(numbered(feeds)) == feeds
