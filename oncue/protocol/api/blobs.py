"""Bodies about blobs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oncue.protocol.api.base import Request, Response
from oncue.protocol.codec import build_decoders

MOST_BLOBS = 1_000  # of one request
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class BlobsRequest(Request, frozen=True):
    """POST /v1/blobs/missing."""

    sha256: Annotated[list[Sha256], Meta(max_length=MOST_BLOBS)]


class BlobsMissing(Response, frozen=True):
    """The blobs that are not in the store; the others stay a retention period longer."""

    missing: list[str]


build_decoders(globals())
