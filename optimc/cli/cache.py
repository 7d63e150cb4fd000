"""`optimc cache`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from optimc.pipeline.cache import Cache


def run_info() -> int:
    """Prints the folder, the bound, and count and size by kind."""
    cache = Cache()
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for entry in cache.entries():
        counts[entry.kind] += 1
        sizes[entry.kind] += entry.bytes
    print(f"folder  {cache.folder}")
    print(f"size    {_mb(sum(sizes.values()))} of {_mb(cache.size_bytes)}")
    for kind in sorted(counts):
        print(f"  {kind:<22} {counts[kind]:>6}  {_mb(sizes[kind]):>12}")
    return 0


def run_verify() -> int:
    """Removes damaged entries and says how many there were."""
    damaged = Cache().verify()
    for entry in damaged:
        print(f"removed {entry.kind} {entry.key}: its contents changed")
    print(f"{len(damaged)} damaged")
    return 0


def run_prune(size_gb: float | None) -> int:
    """Prunes now, entries in use included only where they are older than a minute."""
    freed = Cache().prune(None if size_gb is None else int(size_gb * 1e9), in_use_seconds=60.0)
    print(f"freed {_mb(freed)}")
    return 0


def run_clear() -> int:
    """Removes everything."""
    print(f"freed {_mb(Cache().clear())}")
    return 0


def run_export(file: Path) -> int:
    """Writes the tar file and says how much is in it."""
    from optimc.pipeline.cache_transfer import export_cache

    entries = export_cache(Cache(), file)
    print(f"exported {len(entries)} entries, {_mb(sum(entry.bytes for entry in entries))}")
    return 0


def run_import(file: Path) -> int:
    """Takes the entries in and says how many are new."""
    from optimc.pipeline.cache_transfer import import_cache

    new, known = import_cache(Cache(), file)
    print(f"imported {new} entries, {known} were there")
    return 0


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
