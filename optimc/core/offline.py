"""`--offline`: no Python code of a build opens a connection, the user's own included.

optimc itself uses no network. What a recipe names may: a `call:`, a factory, a model hub's library
behind it. An audit hook (PEP 578) refuses their connections and look-ups of names with a message,
here and in the workers, which inherit the variable; sockets of this machine stay. Libraries that
know an offline mode are told by their variables. Native code is not held.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from optimc.core.errors import InputError

VARIABLE = "OPTIMC_OFFLINE"
_LIBRARIES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_hooked = False


def refuse_network() -> None:
    """From now on, in this process and the workers that it starts."""
    os.environ[VARIABLE] = "1"
    os.environ.update(_LIBRARIES)
    _hook()


def inherit() -> None:
    """What a worker does at its start: as its parent was told."""
    if os.environ.get(VARIABLE):
        _hook()


def _hook() -> None:
    global _hooked  # an audit hook stays for as long as the process lives
    if not _hooked:
        _hooked = True
        sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or not os.environ.get(VARIABLE):
        return
    place = arguments[0] if event.startswith("socket.get") else arguments[1]
    if isinstance(place, str | bytes) and not event.startswith("socket.get"):
        return  # a socket in the file system
    if isinstance(place, tuple) and place[:1] in (("127.0.0.1",), ("::1",), ("localhost",)):
        return
    if place in ("localhost", "127.0.0.1", "::1"):
        return
    host = place[0] if isinstance(place, tuple) else place
    raise InputError(
        f"a connection to `{host}` was tried, which --offline refuses",
        fix="name a local file in the recipe, or leave out --offline",
    )
