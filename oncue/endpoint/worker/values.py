"""Arguments and results of a task as bytes: inline, or as blobs."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from oncue.endpoint.worker.blob_files import BLOBS
from oncue.errors import CannotLoad, CannotPack, OncueError, OtherPython
from oncue.functions.remedies import pip_line
from oncue.pickles import PYTHON
from oncue.protocol.payload import MSGPACK, is_plain, unpack_args
from oncue.protocol.records import INLINE_BYTES, Failure

# Kept, so that a function that replaces it breaks no answer.
_encode_value = msgspec.msgpack.Encoder().encode


def packed(result: Any) -> bytes:
    """Pack a result; a large one becomes a blob.

    Raises CannotPack, OSError.
    """
    if type(result) is bytes and len(result) > INLINE_BYTES:
        return BLOBS.put(*_pack_bytes(result))
    if is_plain(result):
        try:
            data = MSGPACK + _encode_value(result)
        except UnicodeEncodeError:  # lone surrogates: a pickle has them
            pass
        else:
            return data if len(data) <= INLINE_BYTES else BLOBS.put(data)
    return BLOBS.pickled(result)


def arguments(payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Unpack a call's arguments. Raises CannotLoad, BlobMissing."""
    here = f"the worker's Python {PYTHON} ({sys.executable})"
    try:
        return unpack_args(payload, BLOBS)
    except OtherPython as e:
        theirs = e.details["python"]
        raise CannotLoad(
            f"an argument is of a class or function that travels as bytecode of Python {theirs}, which {here} cannot run",
            remedy="define it in a .py file that the function imports, whose source travels; "
            f"or run the endpoint with Python {theirs}",
            python=theirs,
        ) from None
    except OncueError:
        raise
    except ModuleNotFoundError as e:
        raise CannotLoad(
            f"an argument needs the module {e.name}, which {here} does not have",
            remedy=f"where it is a file of yours, import it in the function; else on the endpoint: {pip_line(e.name or '')}",
        ) from e
    except Exception as e:
        raise CannotLoad(
            f"an argument cannot be read by {here}: {type(e).__name__}: {e}",
            remedy="versions of packages may differ; and what cannot be pickled and read again cannot travel",
        ) from e


def _pack_bytes(data: bytes) -> tuple[bytes, bytes]:
    """Pack large bytes; return header and content.

    msgspec copies them twice, and crashes where there is no memory for it.
    """
    if len(data) >> 32:
        raise CannotPack(
            f"bytes of {len(data):,} are more than 4 GiB",
            remedy="return smaller pieces, or write a file and return its path",
        )
    return b"".join((MSGPACK, b"\xc6", len(data).to_bytes(4, "big"))), data  # msgpack bin32


def unpackable(result: Any, error: CannotPack) -> Failure:
    kind = type(result).__name__
    remedy = (
        "return list(...) of it" if hasattr(result, "__next__") else "return plain data: numbers, text, lists, arrays"
    )
    return Failure(
        "oncue.CannotPack", f"the function returned a {kind}, which cannot travel: {error.message}", "", remedy
    )
