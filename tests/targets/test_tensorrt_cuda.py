"""Buffers, streams, events and clocks: over host memory, and on a GPU where one is at hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.targets.tensorrt import TensorRT
from optimc.targets.tensorrt_clocks import clocks_mhz
from optimc.targets.tensorrt_cuda import (
    DeviceBuffer,
    Event,
    HostBuffer,
    Stream,
    call,
    describe_device,
)
from optimc.testing.cuda_doubles import HostCuda

runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")


@pytest.fixture(params=["on paper", "on a GPU"])
def stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    if request.param == "on paper":
        import cuda.bindings

        monkeypatch.setattr(cuda.bindings, "runtime", HostCuda(runtime))
    else:
        try:
            call("cudaGetDeviceCount")
        except CellError as error:
            pytest.skip(f"no GPU: {error}")
    made = Stream()
    yield made
    made.close()
    made.close()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool"])
def test_what_is_written_is_read_back(stream: Stream, dtype: str) -> None:
    sent = np.random.default_rng(0).integers(0, 2, (3, 1000)).astype(dtype)
    found = np.empty_like(sent)
    buffer = DeviceBuffer()
    buffer.write(sent, stream)
    buffer.read(found, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, sent)
    buffer.close()
    buffer.close()


def test_a_buffer_grows_and_never_shrinks(stream: Stream) -> None:
    buffer = DeviceBuffer(8)
    small = buffer.address
    assert buffer.reserve(4) == small
    buffer.reserve(1 << 20)
    assert buffer.size == 1 << 20
    buffer.close()
    assert buffer.address == 0


def test_nothing_is_copied_of_empty_arrays(stream: Stream) -> None:
    buffer = DeviceBuffer()
    empty = np.empty((0, 4), np.float32)
    buffer.write(empty, stream)
    buffer.read(empty, stream)
    assert buffer.address, "an address all the same: TensorRT takes no null"
    buffer.close()


def test_events_tell_the_time_between_them(stream: Stream) -> None:
    first, second = Event(), Event()
    buffer, data = DeviceBuffer(), np.zeros(1 << 20, np.uint8)
    first.record(stream)
    buffer.write(data, stream)
    second.record(stream)
    stream.synchronize()
    assert second.milliseconds_since(first) > 0
    for one in (first, second, buffer):
        one.close()


def test_the_device_says_what_it_is(stream: Stream) -> None:
    told = describe_device(0)
    assert told["gpu"]
    assert "." in told["compute_capability"]
    assert int(told["driver"]) > 10000
    clocks = clocks_mhz(0)
    assert isinstance(clocks, str) or clocks.keys() == {"sm", "memory"}


def test_what_cuda_refuses_is_said_in_its_words(stream: Stream) -> None:
    with pytest.raises(MemoryError, match="the GPU's memory does not suffice"):
        DeviceBuffer(1 << 60)


def test_a_machine_without_a_driver_is_said_to_have_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings

    paper = HostCuda(runtime)
    monkeypatch.setattr(cuda.bindings, "runtime", paper)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("optimc.targets.tensorrt._release", lambda: (11, 4))
    assert TensorRT.unavailable() is None
    paper.refused = {"cudaGetDeviceCount": "cudaErrorInsufficientDriver"}
    why = TensorRT.unavailable()
    assert why is not None
    said = "cudaGetDeviceCount failed: this is cudaErrorInsufficientDriver"
    assert why.reason == f"TensorRT finds no GPU: {said}"
    assert "on a machine with an NVIDIA GPU" in why.remedy


@pytest.mark.parametrize("release", [(10, 11), None])
def test_a_release_that_is_too_old_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, release: tuple[int, int] | None
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("optimc.targets.tensorrt._release", lambda: release)
    why = TensorRT.unavailable()
    assert why is not None
    assert "is installed, optimc takes 10.12 and newer" in why.reason
    assert why.remedy == "pip install 'tensorrt>=10.12'"


def test_host_memory_is_used_alike() -> None:
    buffer = HostBuffer()
    address = buffer.reserve(8)
    assert buffer.reserve(4) == address
    found = np.empty(2, np.int32)
    buffer.read(found, None)  # type: ignore[arg-type]
    assert found.tolist() == [0, 0]
    buffer.close()
    kept = found.copy()
    buffer.read(found, None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, kept)
