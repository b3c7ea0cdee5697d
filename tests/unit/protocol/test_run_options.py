"""Run options: of a call over those of its function; older records have none."""

from __future__ import annotations

import msgspec

from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call, Failure
from oncue.protocol.run_options import KEEP, SANDBOX, Resources, RunOptions, merged


def test_a_call_states_more_than_its_function() -> None:
    function = RunOptions(Resources(cores=4, gpus=1), SANDBOX, ("*.h5",))
    call = RunOptions(Resources(cores=8, walltime_ms=60_000), KEEP)

    found = merged(call, function)

    assert found == RunOptions(Resources(cores=8, gpus=1, walltime_ms=60_000), KEEP, ("*.h5",))
    assert merged(None, function) == function
    assert merged(None, None) == RunOptions()


def test_records_of_an_older_version_have_no_run_options() -> None:
    old = msgspec.msgpack.encode([1, "f", "e", "alice"])
    assert decode(Call, old).run is None
    failure = decode(Failure, msgspec.msgpack.encode(["ValueError", "no"]))
    assert (failure.exit_code, failure.files, failure.folder) == (-1, (), "")


def test_an_older_version_reads_a_call_with_run_options() -> None:
    call = Call(1, "f", "e", "alice", run=RunOptions(Resources(cores=2)))
    fields = msgspec.msgpack.decode(encode(call))
    assert fields[:4] == [1, "f", "e", "alice"]
    assert decode(Call, encode(call)) == call
