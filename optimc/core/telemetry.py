"""No telemetry: neither ours nor a library's."""

from __future__ import annotations

import sys


def switch_off() -> None:
    """Keeps OpenVINO and NNCF from finding their telemetry package; call it before importing them.

    Both run without it. A consent file or an environment variable would change the user's own
    settings or those of other programs. What is already imported stays.
    """
    if "openvino_telemetry" not in sys.modules:
        # None makes `import openvino_telemetry` raise ImportError, as if it was not installed.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
