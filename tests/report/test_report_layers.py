from __future__ import annotations

from optimc.report.layers import layer_table
from optimc.report.profile import EngineProfile, ProfiledLayer
from optimc.report.values import Skipped
from optimc.testing.example_report import example_report


def _profile(engine: str, cell: str | None, *layers: ProfiledLayer) -> EngineProfile:
    return EngineProfile(
        engine=engine, cell=cell, runtime="onnxruntime", case={}, runs=5, layers=layers
    )


def _layer(name: str, ms: float, *nodes: str, dtype: str = "float32") -> ProfiledLayer:
    return ProfiledLayer(name=name, operator="Conv", dtype=dtype, ms=ms, nodes=nodes)


def test_layers_meet_by_the_nodes_they_do_the_work_of() -> None:
    table = layer_table(example_report())
    assert table is not None
    assert table.engines == ("int8/ort", "source on ort")
    assert [row.name for row in table.rows] == ["/head/Gemm", "/conv1/Conv", "input_quantized"]
    conv = table.rows[1]
    assert not conv.added
    ours, source = conv.figures
    assert ours is not None
    assert source is not None
    assert (ours.ms, ours.dtypes) == (0.3, ("int8",))
    assert abs(source.ms - 0.9) < 1e-9
    assert source.operators == ("Conv", "BatchNormalization")
    assert table.rows[2].added
    assert table.rows[2].figures[1] is None


def test_shares_add_up_and_nothing_is_lost() -> None:
    profiles = (
        _profile("source on ov", None, _layer("a", 1.0, "a"), _layer("b", 2.0, "b")),
        _profile("x/ov", "x/ov", _layer("ab", 0.5, "a", "b"), _layer("q", 0.25)),
    )
    table = layer_table(example_report().model_copy(update={"profiles": profiles}))
    assert table is not None
    for index, total in ((0, 0.75), (1, 3.0)):
        figures = [row.figures[index] for row in table.rows]
        assert abs(sum(f.ms for f in figures if f) - total) < 1e-9
        assert abs(sum(f.share for f in figures if f) - 1.0) < 1e-9


def test_a_small_part_of_a_row_does_not_speak_for_its_precision() -> None:
    layers = (_layer("a", 1.0, "a", dtype="int8"), _layer("c", 0.01, "a", dtype="int64"))
    profiles = (_profile("x/ov", "x/ov", *layers),)
    table = layer_table(example_report().model_copy(update={"profiles": profiles}))
    assert table is not None
    figure = table.rows[0].figures[0]
    assert figure is not None
    assert figure.dtypes == ("int8",)


def test_without_profiles_there_is_no_table() -> None:
    for nothing in ((), Skipped(skipped="--no-measure")):
        assert layer_table(example_report().model_copy(update={"profiles": nothing})) is None
