"""What a report says of the machine."""

from __future__ import annotations

import getpass
import os
import platform
import socket
from dataclasses import asdict

from optimc.measure.machine import describe_machine


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine.cpu
    assert machine.architecture == platform.machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert list(machine.features) == sorted(machine.features)
    assert 100 < machine.available_memory_mb <= machine.memory_mb
    assert platform.system() in machine.os
    assert machine.python == platform.python_version()
    assert machine.load_average is None or all(load >= 0 for load in machine.load_average)


def test_no_host_and_no_user_is_named(monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-someones-laptop")
    text = str(asdict(describe_machine()))
    assert "Linux 6.1.0'" in text or platform.system() != "Linux"
    assert "laptop" not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert len(name) < 5 or name not in text
