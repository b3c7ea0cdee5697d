"""Run options: of a call over those of its function; older records have none."""

from __future__ import annotations

import msgspec
import pytest

from oncue.errors import Invalid
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call, Failure
from oncue.protocol.run_options import KEEP, SANDBOX, Resources, RunOptions, merged, without_affinity
from oncue.protocol.stated_options import rendered_affinity, run_options


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


def test_an_affinity_key_is_of_the_call_and_older_versions_ignore_it() -> None:
    call = Call(1, "f", "e", "alice", run=RunOptions(affinity="scan 7"))
    older = msgspec.msgpack.encode([1, "f", "e", "alice", "", "", 0, None, 0, 0, "", [[4], 1, ["*.h5"]]])

    assert decode(Call, encode(call)) == call
    assert decode(Call, older).run == RunOptions(Resources(cores=4), SANDBOX, ("*.h5",))
    assert merged(call.run, RunOptions(sandbox=SANDBOX)) == RunOptions(sandbox=SANDBOX, affinity="scan 7")


def test_options_without_their_affinity_are_equal() -> None:
    assert without_affinity(RunOptions(affinity="a")) is None
    assert without_affinity(RunOptions(Resources(2), affinity="a")) == RunOptions(Resources(2))
    assert without_affinity(None) is None


@pytest.mark.parametrize("key", ["x" * 201, 7, None, ["a"], "half \ud800"])
def test_an_affinity_key_is_a_short_text(key: object) -> None:
    with pytest.raises(Invalid, match="affinity"):
        run_options(affinity=key)  # type: ignore[arg-type]


def test_long_keys_of_rules_are_cut_and_stay_different() -> None:
    first, second = (rendered_affinity("/data/" + "x" * 5_000 + end) for end in ("1", "2"))
    assert first != second
    assert run_options(affinity=first) == RunOptions(affinity=first)
    assert rendered_affinity("scan") == "scan"
