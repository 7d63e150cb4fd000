"""The part of ``report.json`` that shows inputs: those of the worst samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optimc.report.values import Count, Node, Text

MOST_TEXT = 400
"""Characters of a text that are kept."""


class ShownSample(Node):
    """A sample of the evaluation data as a person sees it."""

    number: Annotated[Count, Field(description="In the evaluation data, from 0.")]
    texts: Annotated[
        tuple[Text, ...], Field(description="Of a pair two; shortened where they are long.")
    ] = ()
    png: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9+/]+={0,2}$",
            max_length=200_000,
            description="A small picture of an image, base64; values are stretched to be seen.",
        ),
    ] = None
