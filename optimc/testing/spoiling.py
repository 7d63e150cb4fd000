"""Changes of bytes and of trees of JSON, for files that are bad on purpose."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any


def spoil_bytes(path: Path, rng: random.Random) -> None:
    """Flips, cuts or repeats some bytes of a file."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(content) or 1)
        change = rng.randint(0, 3)
        if change == 0 and content:
            content[place] = rng.randrange(256)
        elif change == 1:
            del content[place : place + rng.randint(1, 64)]
        elif change == 2:
            content[place:place] = content[place : place + rng.randint(1, 64)]
        else:
            content[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    path.write_bytes(bytes(content))


def spoil_tree(tree: Any, rng: random.Random) -> None:
    """Takes away one entry, or puts something else in its place."""
    weird: tuple[Any, ...] = (
        None,
        -1,
        2**40,
        2**70,
        1.5,
        "",
        "x" * 100,
        [],
        {},
        True,
        "\x1b[31m",
        "[UNK]",
    )
    while isinstance(tree, dict | list) and tree:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        if not isinstance(tree[key], dict | list) or not tree[key] or rng.random() < 0.3:
            if rng.random() < 0.2:
                del tree[key]
            else:
                tree[key] = rng.choice(weird)
            return
        tree = tree[key]
