"""The plain (unquoted) values of YAML, after the core schema of YAML 1.2.2 (chapter 10.3).

``1e-3`` is a number and ``2024-01-01`` is text. What versions of YAML read differently (``no``,
``010``) is refused instead of guessed, and so is what is not finite.
"""

from __future__ import annotations

import math
import re

from optimc.pipeline.recipe.locate import Place, RecipeStop, Scalar

_AMBIGUOUS = re.compile(r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)")
_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_TRUE = re.compile(r"(?:true|True|TRUE)")
_FALSE = re.compile(r"(?:false|False|FALSE)")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_NUMBER = 40
"""Characters of the longest number: nothing in a recipe is near it."""


def resolve(text: str, place: Place) -> Scalar:
    """The value of a plain scalar. Raises RecipeStop for what YAML's versions read differently."""
    if _AMBIGUOUS.fullmatch(text):
        fix = f'write true or false, or quote it if it is text: "{text}"'
        raise RecipeStop(place, f"`{text}` means true or false in some versions of YAML", fix)
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if _NOT_FINITE.fullmatch(text):
        raise RecipeStop(place, f"`{text}` is not a finite number", "write a finite number")
    if _FLOAT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        return _number(text, place)
    return text


def _number(text: str, place: Place) -> int | float:
    if len(text) > _MAX_NUMBER:
        raise RecipeStop(place, f"`{text[:12]}...` has {len(text)} digits", "shorten the number")
    if _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            what = f"`{text}` is octal in some versions of YAML"
            plain = str(int(text))
            raise RecipeStop(place, what, f"write {plain}, or quote it if it is text")
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise RecipeStop(place, f"`{text}` is not a finite number", "write a finite number")
    return number
