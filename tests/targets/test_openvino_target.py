from __future__ import annotations

from typing import ClassVar

import pytest

from optimc.core.targets import Target
from optimc.targets.openvino import OpenVino
from optimc.testing.target_contract import TargetContract

pytest.importorskip("openvino", reason="needs the extra `openvino`")


class TestOpenVinoContract(TargetContract):
    targets: ClassVar[tuple[Target, ...]] = (OpenVino(threads=2),)
