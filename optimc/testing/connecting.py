"""A worker's service that tries the network, as user code may."""

from __future__ import annotations

from typing import Any


class Connecting:
    """Connects to an address that is documentation's own (RFC 5737)."""

    def connect(self, arrays: Any) -> tuple[None, dict[str, Any]]:
        """Tries it."""
        import socket

        socket.create_connection(("192.0.2.1", 9), timeout=0.01).close()
        return None, {}
