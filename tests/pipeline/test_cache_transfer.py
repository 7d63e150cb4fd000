"""`optimc cache export` and `import`: the same entries elsewhere, and nothing that is no entry."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.pipeline.cache import Cache
from optimc.pipeline.cache_transfer import export_cache, import_cache
from optimc.testing.bad_inputs import Workshop
from optimc.testing.commands import run_optimc, temporary_leftovers


def _filled(folder: Path) -> Cache:
    cache = Cache(folder)
    for number in range(3):

        def write(place: Path, text: str = "x" * number) -> None:
            (place / "model").mkdir()
            (place / "model" / "a.txt").write_text(text, encoding="utf-8")

        cache.put("pass", digest_of(number), write)
    return cache


def _keys(cache: Cache) -> set[tuple[str, str]]:
    return {(entry.kind, entry.key) for entry in cache.entries()}


def test_what_is_exported_is_imported(tmp_path: Path) -> None:
    cache, other = _filled(tmp_path / "a"), Cache(tmp_path / "b")
    assert len(export_cache(cache, tmp_path / "cache.tar")) == 3
    assert import_cache(other, tmp_path / "cache.tar") == (3, 0)
    assert _keys(other) == _keys(cache)
    assert import_cache(other, tmp_path / "cache.tar") == (0, 3)
    assert other.verify() == []


def test_the_same_cache_gives_the_same_bytes(tmp_path: Path) -> None:
    export_cache(_filled(tmp_path / "a"), tmp_path / "1.tar")
    export_cache(_filled(tmp_path / "b"), tmp_path / "2.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]


def _named(name: str) -> Change:
    return lambda members: setattr(members[0][0], "name", name)


def _typed(kind: bytes, link: str = "") -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info = members[0][0]
        info.type, info.linkname, info.size = kind, link, 0

    return change


def _swollen(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    info, _ = members[0]
    info.size = 2**50


def _flipped(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    index = next(i for i, (info, text) in enumerate(members) if text == b"xx")
    members[index] = (members[index][0], b"xy")


def _more(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    info = tarfile.TarInfo(members[0][0].name.rpartition("/")[0] + "/more")
    members.insert(1, (info, b""))


def _no_listing(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    index = next(i for i, (info, _) in enumerate(members) if info.name.endswith("entry.json"))
    text = json.dumps({"files": {"../../outside": {"bytes": 0, "sha256": ""}}}).encode()
    info = members[index][0]
    info.size = len(text)
    members[index] = (info, text)


KEY = "0" * 64
HOSTILE: dict[str, tuple[Change, str]] = {
    "absolute": (_named("/etc/passwd"), "no file of a cache entry"),
    "parent": (_named(f"v1/pass/00/{KEY}/../../../../outside"), "no file of a cache entry"),
    "other shard": (_named(f"v1/pass/11/{KEY}/a"), "no file of a cache entry"),
    "other layout": (_named(f"v0/pass/00/{KEY}/a"), "no file of a cache entry"),
    "symbolic link": (_typed(tarfile.SYMTYPE, "/etc/passwd"), "no regular file"),
    "hard link": (_typed(tarfile.LNKTYPE, "/etc/passwd"), "no regular file"),
    "device": (_typed(tarfile.CHRTYPE), "no regular file"),
    "fifo": (_typed(tarfile.FIFOTYPE), "no regular file"),
    "swollen": (_swollen, "more than the cache may"),
    "flipped": (_flipped, "digests differ"),
    "unlisted file": (_more, "digests differ"),
    "listing that leaves": (_no_listing, "digests differ"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_no_export_holds_is_refused(name: str, tmp_path: Path) -> None:
    change, says = HOSTILE[name]
    export_cache(_filled(tmp_path / "a"), tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar") as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    change(members)
    with open(tmp_path / "bad.tar", "wb") as file:
        for info, content in members:
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            file.write(content + bytes(-len(content) % 512))
        file.write(bytes(1024))
    other = Cache(tmp_path / "b")
    before = {p for p in tmp_path.rglob("*") if tmp_path / "b" not in p.parents}
    with pytest.raises(InputError, match=says):
        import_cache(other, tmp_path / "bad.tar")
    assert other.verify() == []
    assert temporary_leftovers(tmp_path) == []
    assert {p for p in tmp_path.rglob("*") if tmp_path / "b" not in p.parents} == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_one_message(share: float, tmp_path: Path) -> None:
    export_cache(_filled(tmp_path / "a"), tmp_path / "cache.tar")
    content = (tmp_path / "cache.tar").read_bytes()
    end = content.rindex(b"entry.json")  # behind it there is nothing but zeros
    (tmp_path / "cache.tar").write_bytes(content[: int(share * end)])
    other = Cache(tmp_path / "b")
    with pytest.raises(InputError, match="optimc cache export FILE"):
        import_cache(other, tmp_path / "cache.tar")
    assert other.verify() == []


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cache.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("v1"), io.BytesIO())
    with pytest.raises(InputError, match="not a whole tar file"):
        import_cache(Cache(tmp_path / "b"), tmp_path / "cache.tar")


def test_a_build_on_another_machine_goes_on_from_an_import(
    tmp_path: Path, repository: Path
) -> None:
    shop = Workshop.make(tmp_path / "shop", repository / "recipes")
    shop.replace("gate: {ship: best, drop: {top1: 0.02}}\n", "")
    build = ("build", "recipe.yaml", "--no-measure", "--variant", "fp32")
    here, there = ({"OPTIMC_CACHE_DIR": str(tmp_path / name)} for name in ("here", "there"))
    assert run_optimc(*build, cwd=shop.folder, environment=here).code == 0
    export = run_optimc("cache", "export", "cache.tar", cwd=shop.folder, environment=here)
    assert "exported" in export.out
    taken = run_optimc("cache", "import", "cache.tar", cwd=shop.folder, environment=there)
    assert taken.code == 0, taken.err
    assert "0 were there" in taken.out
    before = _keys(Cache(tmp_path / "there"))
    assert run_optimc(*build, "--offline", cwd=shop.folder, environment=there).code == 0
    assert _keys(Cache(tmp_path / "there")) == before
    missing = run_optimc("cache", "import", "no.tar", cwd=shop.folder, environment=there)
    assert missing.code == 2
    assert "no.tar" in missing.err
