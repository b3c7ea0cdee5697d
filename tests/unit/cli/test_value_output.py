"""How commands print the values of functions."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from oncue.cli.value_output import TEXT_CHARS, json_of, text_of, value_output
from oncue.client import Client
from oncue.protocol.api import TaskInfo
from tests.unit.client.client_server import Bomb, serving
from tests.unit.client.conftest import plain_pickles  # noqa: F401  (a fixture)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Scan:
    path: Path
    angles: tuple[float, ...]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def tolist(self) -> Any:
        raise RuntimeError("no")

    dtype = "x"


HOSTILE = {"repr": "<Hostile whose repr raised RuntimeError>", "type": f"{__name__}.Hostile"}
CASES: list[tuple[Any, str, Any]] = [
    (None, "", None),
    ("text [/scan]", "text [/scan]", "text [/scan]"),
    ({"a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true]}', {"a": [1, 2.5, None, True]}),
    ((1, ("x",)), "(1, ('x',))", [1, ["x"]]),
    ({1: 2}, "{1: 2}", {"1": 2}),
    ({1: 2, "1": 3}, "{1: 2, '1': 3}", {"repr": "{1: 2, '1': 3}", "type": "dict"}),
    ({(1,): 2}, "{(1,): 2}", {"repr": "{(1,): 2}", "type": "dict"}),
    ({3}, "{3}", [3]),
    (b"\x00", "b'\\x00'", {"repr": "b'\\x00'", "type": "bytes"}),
    ([b"\x00"], "[b'\\x00']", [{"repr": "b'\\x00'", "type": "bytes"}]),
    (2**70, str(2**70), {"repr": str(2**70), "type": "int"}),
    (float("nan"), "nan", "nan"),
    (1j, "1j", {"repr": "1j", "type": "complex"}),
    (Path("/a"), repr(Path("/a")), "/a"),
    (uuid.UUID(int=1), repr(uuid.UUID(int=1)), str(uuid.UUID(int=1))),
    (datetime.date(2026, 1, 2), "datetime.date(2026, 1, 2)", "2026-01-02"),
    (Colour.RED, "<Colour.RED: 'red'>", "red"),
    (Level.HIGH, "<Level.HIGH: 3>", 3),
    (Point(1, 2), "Point(x=1, y=2)", [1, 2]),
    (Scan(Path("/a"), (0.0, 9.5)), repr(Scan(Path("/a"), (0.0, 9.5))), {"path": "/a", "angles": [0.0, 9.5]}),
    (np.float64(1.5), repr(np.float64(1.5)), 1.5),
    (np.float32("nan"), repr(np.float32("nan")), "nan"),
    (np.int16(3), repr(np.int16(3)), 3),
    (np.bool_(True), repr(np.bool_(True)), True),
    (np.arange(4).reshape(2, 2), repr(np.arange(4).reshape(2, 2)), [[0, 1], [2, 3]]),
    (Hostile(), HOSTILE["repr"], HOSTILE),
    ([1, Hostile()], None, [1, HOSTILE]),
]


@pytest.mark.parametrize(("value", "text", "form"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_values(value: Any, text: str | None, form: Any) -> None:
    if text is not None:
        assert text_of(value) == text
    found = json_of(value)
    assert found == form
    assert type(found) is type(form)
    assert json.loads(msgspec.json.encode(found)) == form


def test_long_and_deep_values_are_truncated() -> None:
    assert len(text_of(("x" * 100_000,))) < TEXT_CHARS + 100
    assert json_of(np.zeros(1_000_000))["type"] == "numpy.ndarray"
    endless: list[Any] = []
    endless.append(endless)
    assert msgspec.json.encode(json_of(endless))


def test_only_values_of_the_callers_own_endpoints_are_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    info = TaskInfo(
        id="0" * 32, state="succeeded", function="f", name="f", endpoint="hers", owner="ada", has_value=True
    )
    info = msgspec.structs.replace(info, value="a pickled value of 21 bytes")
    with serving() as server, Client(server.url, "t") as client:
        server.world.owner = "mallory"
        found = value_output(client.submit(Bomb, endpoint="hers"), info)
        assert found.text == found.json == "a pickled value of 21 bytes"
        assert "hers" in found.why_not
        assert not os.listdir(tmp_path)
        server.world.owner = "ada"
        assert value_output(client.submit(complex, 1, 2), info).text == "(1+2j)"
        assert value_output(client.submit(tuple, [1, 2]), info).json == [1, 2]
        large = value_output(client.submit(lambda: b"z" * 2_000_000), info)
        assert large.json == info.value
        assert "large" in large.why_not
        missing = type(
            "Missing", (), {"__module__": "tests.unit.client.client_server"}
        )  # only the worker can import it
        monkeypatch.setattr("tests.unit.client.client_server.Missing", missing, raising=False)
        gone = client.submit(missing)
        assert gone.wait(10)
        monkeypatch.delattr("tests.unit.client.client_server.Missing")
        assert "cannot be read here: AttributeError" in value_output(gone, info).why_not
