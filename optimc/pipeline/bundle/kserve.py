"""A KServe InferenceService (``serving.kserve.io/v1beta1``) over a Triton model repository."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.pipeline.bundle.plain import write_proof
from optimc.pipeline.bundle.triton import write_repository

if TYPE_CHECKING:
    from optimc.pipeline.bundle.delivery import Delivery
    from optimc.pipeline.bundle.golden import Golden

_LABEL = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
_SERVER_MB = 1024
"""What the server takes beside the model, so that a pod is not killed while it loads."""


def write_kserve(delivery: Delivery, golden: list[Golden], folder: Path) -> None:
    """Fills the empty `folder`: ``inferenceservice.yaml`` and the repository to upload."""
    import yaml

    write_repository(delivery, golden, folder / "models")
    write_proof(delivery, golden, folder, f"models/{delivery.name}/{delivery.version}")
    text = yaml.safe_dump(inference_service(delivery), sort_keys=False)
    note = (
        "# Upload the folder models/ to storage that the cluster reads, name it as storageUri,\n"
        "# and: kubectl apply -f inferenceservice.yaml\n"
    )
    (folder / "inferenceservice.yaml").write_text(note + text, encoding="utf-8")


def inference_service(delivery: Delivery) -> dict[str, Any]:
    """The resource as plain data. Raises InputError for a name that Kubernetes does not take."""
    if not re.fullmatch(_LABEL, delivery.name):
        suggestion = re.sub(r"[^a-z0-9]+", "-", delivery.name.lower()).strip("-") or "model"
        raise InputError(
            f"`{delivery.name}` is no name of a Kubernetes resource",
            where="--name",
            fix=f"take small letters, digits and dashes: --name {suggestion}",
        )
    onnx = delivery.engine.runtime == "onnxruntime"
    resources = _resources(delivery)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": delivery.name,
            "annotations": {
                "optimc/cell": delivery.cell.name,
                "optimc/engine-sha256": delivery.engine.digest,
            },
        },
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx", "version": "1"} if onnx else {"name": "triton"},
                    "runtime": "kserve-tritonserver",
                    "protocolVersion": "v2",
                    "storageUri": f"pvc://models/{delivery.name}/models",
                    "resources": {"requests": resources, "limits": dict(resources)},
                }
            }
        },
    }


def _resources(delivery: Delivery) -> dict[str, str]:
    from optimc.report.schema import EngineReport

    found = delivery.cell.engine
    assert isinstance(found, EngineReport)
    peak = found.peak_memory_mb
    engine_mb = peak if isinstance(peak, float | int) else 3 * found.bytes / 1e6
    memory = 256 * math.ceil((engine_mb + _SERVER_MB) / 256)
    threads = delivery.engine.manifest["session"].get("threads") or 1
    return {"cpu": str(threads), "memory": f"{memory}Mi"}
