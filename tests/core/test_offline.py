"""`--offline`: connections are refused with a message, in the process and in its workers."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import socket
from optimc.core.errors import InputError
from optimc.core.offline import refuse_network
{before}
try:
    {tried}
except InputError as error:
    print(error)
except OSError as error:
    print("tried")
"""


def _said(tried: str, before: str = "refuse_network()") -> str:
    program = PROGRAM.format(before=before, tried=tried)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "tried",
    [
        'socket.create_connection(("192.0.2.1", 9), timeout=0.01)',
        'socket.getaddrinfo("example.invalid", 80)',
        'socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))',
        '__import__("urllib.request").request.urlopen("http://192.0.2.1:9", timeout=0.01)',
    ],
)
def test_a_connection_is_refused(tried: str) -> None:
    assert "which --offline refuses" in _said(tried)


def test_this_machine_s_own_sockets_stay() -> None:
    tried = 'socket.create_connection(("127.0.0.1", 9), timeout=0.1)'
    assert _said(tried) == "tried\n"
    assert _said('socket.socket(socket.AF_UNIX).connect("/no/such/socket")') == "tried\n"


def test_without_it_nothing_is_refused() -> None:
    tried = 'socket.create_connection(("127.0.0.1", 9), timeout=0.1)'
    assert _said(tried, before="") == "tried\n"


def test_workers_inherit_it() -> None:
    program = """
from optimc.core.worker import Worker
from optimc.core.errors import OptimcError
from optimc.core.offline import refuse_network
refuse_network()
with Worker("optimc.testing.connecting:Connecting", name="a worker") as worker:
    try:
        worker.call("connect")
    except OptimcError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "a connection to `192.0.2.1` was tried, which --offline refuses" in done.stdout
