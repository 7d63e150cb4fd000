"""A model repository and ``config.json`` for OpenVINO Model Server, which takes IR and ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.pipeline.bundle.plain import copy_engine, write_proof

if TYPE_CHECKING:
    from optimc.pipeline.bundle.delivery import Delivery
    from optimc.pipeline.bundle.golden import Golden

MOUNT = "/models"
"""Where the folder ``models`` is mounted in the server's container."""


def write_ovms(delivery: Delivery, golden: list[Golden], folder: Path) -> None:
    """Fills the empty `folder`. Raises InputError where the server cannot load the engine."""
    if delivery.engine.runtime != "openvino":
        raise InputError(
            f"the cell {delivery.cell.name} is built for {delivery.engine.runtime}, and OpenVINO "
            "Model Server would run it by OpenVINO, which was not measured",
            where="--cell",
            fix="choose a cell whose target is openvino",
        )
    model = f"models/{delivery.name}/{delivery.version}"
    copy_engine(delivery, folder / model)
    text = json.dumps(server_config(delivery), indent=2) + "\n"
    (folder / "models" / "config.json").write_text(text, encoding="utf-8")
    write_proof(delivery, golden, folder, model)


def server_config(delivery: Delivery) -> dict[str, Any]:
    """The server's configuration, with the settings that the engine was measured with."""
    session = delivery.engine.manifest["session"]
    plugin = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": session.get("precision"),
        "INFERENCE_NUM_THREADS": session.get("threads"),
    }
    return {
        "model_config_list": [
            {
                "config": {
                    "name": delivery.name,
                    "base_path": f"{MOUNT}/{delivery.name}",
                    "target_device": "CPU",
                    "plugin_config": {key: str(value) for key, value in plugin.items() if value},
                }
            }
        ]
    }
