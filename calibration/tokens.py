"""Tokenizers: a `tokenizer.json`, as the library `tokenizers` writes it, alone or in a folder.

The Hugging Face folder's other files say what `tokenizer.json` may leave open: the padding token
and the greatest length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from optimc.core.errors import InputError, missing_extra

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_MAX_CONFIG = 16 << 20
_UNLIMITED = 1_000_000  # configurations without a greatest length say 1e30

Segment: TypeAlias = str | list[str]
"""A text, or its words."""


@dataclass(frozen=True)
class TextTokenizer:
    """Turns texts into ids, without padding."""

    tokenizer: tokenizers.Tokenizer
    max_length: int
    pad_id: int
    pad_type_id: int
    pad_left: bool

    def check_room(self, pair: bool, where: str) -> None:
        """Raises InputError where `max_length` leaves no room beside the special tokens."""
        with _panics_as_errors():
            special = self.tokenizer.num_special_tokens_to_add(pair)
        if special >= self.max_length:
            raise InputError(
                f"adds {special} special tokens, which leaves no room in {self.max_length}",
                where=where,
                fix="make `max_length`, or the last length of `padding`, greater",
            )

    def encode(
        self, texts: Sequence[Segment | tuple[Segment, Segment]], *, words: bool
    ) -> list[tokenizers.Encoding]:
        """One encoding each, truncated to `max_length` and not padded; pairs as two segments.

        Raises what the library raises where it refuses a text, RuntimeError where it panics.
        """
        with _panics_as_errors():
            return self.tokenizer.encode_batch(list(texts), is_pretokenized=words)


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raises RuntimeError for a panic of the library's native code, which is no Exception."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(str(error)) from error


def tokenizer_file(path: Path) -> Path:
    """The file of a tokenizer that is named by its file or its folder."""
    return path / TOKENIZER if path.is_dir() else path


def load_tokenizer(path: Path, max_length: int | None, pad_token: str | None) -> TextTokenizer:
    """The tokenizer of a file or folder.

    Raises InputError where it cannot be read, or where nothing says how long texts may be or what
    they are padded with; UnavailableError without the extra.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("text", "tokenizing text") from error
    file = tokenizer_file(path)
    try:
        with _panics_as_errors():
            made = Tokenizer.from_file(str(file))
    except Exception as error:
        raise InputError(
            f"is not a tokenizer that can be read: {str(error)[:200]}",
            where=str(file),
            fix="name the tokenizer.json that the library `tokenizers` or `transformers` wrote",
        ) from error
    config = {**_json(file.with_name(_SPECIAL)), **_json(file.with_name(_CONFIG))}
    length = max_length or _max_length(made, config, str(file))
    padding = made.padding or {}
    token = pad_token or padding.get("pad_token") or _token(config.get("pad_token"))
    pad_id = None if token is None else made.token_to_id(token)
    if pad_id is None:
        what = "names no padding token" if token is None else f"has no token `{token}` to pad with"
        fix = "name one of its tokens: pad_token: <token>"
        raise InputError(what, where=str(file), fix=fix)
    side = padding.get("direction") or config.get("padding_side") or "right"
    made.no_padding()
    made.enable_truncation(length, direction=(made.truncation or {}).get("direction", "right"))
    type_id = int(padding.get("pad_type_id", 0))
    return TextTokenizer(made, length, pad_id, type_id, str(side).lower() == "left")


def _max_length(made: tokenizers.Tokenizer, config: dict[str, Any], where: str) -> int:
    known = (made.truncation or {}).get("max_length") or config.get("model_max_length")
    if isinstance(known, int) and 0 < known < _UNLIMITED:
        return known
    fix = "max_length: <the most tokens that the model takes, such as 512>"
    raise InputError("does not say how long a text may be", where=where, fix=fix)


def _token(entry: Any) -> str | None:
    """A token of a configuration: its text, or a mapping with it."""
    found = entry.get("content") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    """The file's object, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"it is larger than {_MAX_CONFIG:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        fix = "restore the file of the tokenizer's folder, or name tokenizer.json alone elsewhere"
        raise InputError(f"cannot be read: {error}", where=str(path), fix=fix) from error
    return content
