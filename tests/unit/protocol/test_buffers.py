"""Large buffers of arguments: apart from the pickle, unchanged at the other end, each once."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oncue.errors import CannotPack, Undecodable
from oncue.functions import pack_function
from oncue.pickles import ObjectRef
from oncue.protocol.buffers import HEADER_BYTES, MOST, Buffer, read_buffer
from oncue.protocol.payload import (
    BODY_BYTES,
    MOST_BLOBS,
    BlobName,
    PackedApart,
    Ref,
    needs_blob,
    pack_apart,
    pack_args_apart,
    pack_ref,
    unpack,
)
from oncue.protocol.records import INLINE_BYTES

ARRAY = np.arange(100_000, dtype="float64")


class Folder:
    """A BlobSource of files, as a worker has it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, packed: PackedApart) -> bytes:
        """Return the payload, as a client sends it."""
        names = []
        for buffer in packed.buffers:
            (self.path / buffer.sha256()).write_bytes(buffer.header + bytes(buffer.content))
            names.append(BlobName(buffer.sha256(), buffer.size_bytes))
        names += packed.objects
        if names and len(packed.body) <= BODY_BYTES:
            return pack_ref(Ref(names[0].sha256, names[0].size_bytes, body=packed.body, more=tuple(names[1:])))
        if not needs_blob(packed.body):
            return packed.body
        sha256 = hashlib.sha256(packed.body).hexdigest()
        (self.path / sha256).write_bytes(packed.body)
        return pack_ref(Ref(sha256, len(packed.body), more=tuple(names)))

    def read(self, sha256: str) -> bytes:
        return (self.path / sha256).read_bytes()

    def buffer(self, blob: BlobName) -> Any:
        with open(self.path / blob.sha256, "rb") as file:
            return read_buffer(file)


def there_and_back(folder: Folder, *args: Any, **kwargs: Any) -> Any:
    return unpack(folder.store(pack_args_apart(args, kwargs)), folder, at_home=False)


@pytest.mark.parametrize(
    "value",
    [
        ARRAY,
        ARRAY[::2],  # not contiguous
        np.asfortranarray(ARRAY.reshape(100, 1000)),
        ARRAY.astype(">i2"),
        np.zeros((0, 5)),
        b"x" * 300_000,
        "ü" * 300_000,
        "a\ud800" * 200_000,
        bytearray(300_000),
        {"deep": [{"image": ARRAY}, "x" * 300_000]},
        [ARRAY, ARRAY + 1],
        list(range(100_000)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_come_back_equal_and_of_their_type(value: Any, tmp_path: Path) -> None:
    args, kwargs = there_and_back(Folder(tmp_path), value, 1, key=value)
    assert type(args[0]) is type(value)
    assert args[1] == 1
    np.testing.assert_equal(args[0], value)
    np.testing.assert_equal(kwargs["key"], value)


def test_an_array_is_mapped_and_a_private_copy(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    payload = folder.store(pack_args_apart((ARRAY,), {}))
    (first,), _ = unpack(payload, folder)
    assert first.flags.writeable
    assert first.flags.aligned
    assert not first.flags.owndata, "the file's pages, not a copy"
    first[0] = 99
    (second,), _ = unpack(payload, folder)
    assert second[0] == 0, "what a task writes reaches nobody"


def test_a_read_only_array_stays_read_only(tmp_path: Path) -> None:
    fixed = ARRAY.copy()
    fixed.flags.writeable = False
    (found,), _ = there_and_back(Folder(tmp_path), fixed)
    assert not found.flags.writeable


def test_one_array_twice_is_one_array(tmp_path: Path) -> None:
    (a, b), kwargs = there_and_back(Folder(tmp_path), ARRAY, [ARRAY], again=ARRAY)
    assert a is b[0] is kwargs["again"]
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_arrays_of_several_calls_are_one_blob(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for n in range(5):
        folder.store(pack_args_apart((ARRAY.copy(), n), {}))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("size", [1_000, 8_000, 30_000])
def test_small_arrays_travel_inline(size: int, tmp_path: Path) -> None:
    packed = pack_args_apart((np.arange(size, dtype="float64"),), {})
    assert not packed.buffers
    assert not needs_blob(packed.body)


def test_many_arrays_and_a_large_rest_become_one_blob(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    many = [np.full(10_000, n, dtype="float64") for n in range(MOST + 5)]
    (found,), _ = there_and_back(folder, many)
    np.testing.assert_equal(found, many)
    rest = list(range(INLINE_BYTES))
    args, _ = there_and_back(folder, ARRAY, rest)
    np.testing.assert_equal(args[0], ARRAY)
    assert args[1] == rest


def test_nobody_takes_a_buffer_for_a_payload(tmp_path: Path) -> None:
    (buffer,) = pack_args_apart((b"p" * 300_000,), {}).buffers
    with pytest.raises(Undecodable, match="not a payload"):
        unpack(buffer.header + bytes(buffer.content))
    assert buffer.size_bytes == HEADER_BYTES + 300_000


@pytest.mark.parametrize("content", [b"", b"b", b"p" * 100, b"bz" + bytes(62)])
def test_what_is_no_buffer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb") as file, pytest.raises(Undecodable, match="not a buffer"):
        read_buffer(file)


class TestObjectRef:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
        folder = Folder(tmp_path)
        monkeypatch.setattr("oncue.pickles.object_ref.load", lambda payload: unpack(payload, folder))
        return folder

    def ref(self, folder: Folder, value: Any) -> ObjectRef[Any]:
        return ObjectRef(folder.store(pack_apart(value)), 0, type(value).__name__)

    @pytest.mark.parametrize("value", [ARRAY, [1, 2], list(range(100_000)), b"x" * 300_000, "s" * 400_000, None])
    def test_it_is_its_value_where_it_is_read(self, value: Any, folder: Folder) -> None:
        ref = self.ref(folder, value)
        (first, second), kwargs = there_and_back(folder, ref, {"inside": [ref]}, key=ref)
        for found in (first, second["inside"][0], kwargs["key"]):
            assert type(found) is type(value)
            np.testing.assert_equal(found, value)

    @pytest.mark.parametrize("other", [1, ARRAY + 1, list(range(100_000)), list(range(30_000))], ids=lambda v: "")
    def test_the_call_names_its_blobs(self, other: Any, folder: Folder) -> None:
        """An agent fetches them before the task runs."""
        ref = self.ref(folder, ARRAY)
        packed = pack_args_apart((ref, other), {})
        assert [blob.size_bytes for blob in packed.objects] == [HEADER_BYTES + ARRAY.nbytes]
        (found, same), _ = unpack(folder.store(packed), folder)
        np.testing.assert_equal(found, ARRAY)
        np.testing.assert_equal(same, other)

    def test_a_value_may_hold_others(self, folder: Folder) -> None:
        inner = self.ref(folder, ARRAY)
        packed = pack_args_apart((self.ref(folder, [inner, 1]),), {})
        assert [blob.size_bytes for blob in packed.objects] == [HEADER_BYTES + ARRAY.nbytes]
        ((found, one),), _ = unpack(folder.store(packed), folder)
        np.testing.assert_equal(found, ARRAY)
        assert one == 1

    def test_it_can_be_pickled_for_another_program(self, folder: Folder) -> None:
        ref = self.ref(folder, ARRAY)
        again = pickle.loads(pickle.dumps(ref))
        assert again == ref
        assert hash(again) == hash(ref)
        assert repr(again) == repr(ref)

    def test_it_is_an_argument_only(self, folder: Folder) -> None:
        ref = self.ref(folder, ARRAY)
        with pytest.raises(CannotPack, match="only as an argument"):
            pack_function(lambda: ref)

    def test_too_many_are_refused(self, folder: Folder) -> None:
        ref = self.ref(folder, ARRAY)
        pack_args_apart(([ref] * MOST_BLOBS,), {})  # the same one
        others = [ObjectRef(pack_ref(Ref(f"{n:064x}", 9)), 9, "x") for n in range(MOST_BLOBS + 1)]
        with pytest.raises(CannotPack, match=r"refers to 1,001 blobs"):
            pack_args_apart((others,), {})


def test_a_buffer_hashes_header_and_content() -> None:
    buffer = Buffer(b"w", memoryview(b"abc"))
    assert buffer.sha256() == hashlib.sha256(b"bw".ljust(64, b"\0") + b"abc").hexdigest()
