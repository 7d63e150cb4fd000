from __future__ import annotations

from pathlib import Path

import pytest

from optimc.core.errors import ExitCode, UnavailableError
from optimc.core.targets import BuildContext
from optimc.targets.tensorrt import TensorRT
from optimc.testing.graphs import nothing_to_do


def test_says_why_it_cannot_build_and_what_to_do(tmp_path: Path) -> None:
    why = TensorRT.unavailable()
    assert why is not None
    assert "not installed" in why.reason
    assert "optional: true" in why.remedy
    with pytest.raises(UnavailableError) as caught:
        TensorRT().build(nothing_to_do(), tmp_path, BuildContext(workspace=tmp_path))
    assert caught.value.exit_code == ExitCode.CELL
    assert caught.value.fix == why.remedy
    assert list(tmp_path.iterdir()) == []


def test_spec_is_its_own() -> None:
    spec = TensorRT().spec()
    assert spec.quantization is not None
    assert spec.quantization.activation_dtype == "int8"
    assert spec.quantization.activation_symmetric
    assert type(spec).model_validate_json(spec.model_dump_json()).digest == spec.digest
