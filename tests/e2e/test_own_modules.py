"""Values of the user's own modules travel with these; and the client keeps nothing alive."""

from __future__ import annotations

import gc
import importlib
import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from oncue.client import Client
from tests.e2e.running import PATIENCE_S, System

pytestmark = pytest.mark.embedded

MODULE = """
import dataclasses, enum, collections
from beam_units import metres

class Scan:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return type(other) is type(self) and vars(self) == vars(other)
    def twice(self): return 2 * self.n
    def path(self): return metres(self.n)

@dataclasses.dataclass
class Data:
    scan: Scan
    more: list = dataclasses.field(default_factory=list)

class Kind(enum.Enum):
    DARK = 1
    FLAT = 2

class Flags(enum.Flag):
    A = 1
    B = 2

Pair = collections.namedtuple("Pair", "a b")

def twice(x): return 2 * x

class Failed(Exception): pass
"""


@pytest.fixture
def beam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's, in a file beside the program, with another that it imports."""
    name = f"beam_{tmp_path.name.replace('-', '_')}"  # of its own: modules stay in sys.modules
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "beam_units.py").write_text("def metres(x):\n    return f'{x} m'\n")
    monkeypatch.syspath_prepend(tmp_path)
    return __import__(name)


@pytest.fixture(scope="module")
def client(shared: System) -> Iterator[Client]:
    with shared.client() as found:
        yield found


def same(value: Any) -> Any:
    return value


VALUES: dict[str, Callable[[Any], Any]] = {
    "instance": lambda beam: beam.Scan(3),
    "in a list": lambda beam: [1, [beam.Scan(3)]],
    "in a dict": lambda beam: {"a": {"b": beam.Scan(3)}},
    "in a tuple": lambda beam: (beam.Scan(3), 1),
    "dataclass": lambda beam: beam.Data(beam.Scan(3), [beam.Kind.DARK]),
    "enum": lambda beam: beam.Kind.FLAT,
    "flags": lambda beam: beam.Flags.A | beam.Flags.B,
    "named tuple": lambda beam: beam.Pair(1, beam.Scan(2)),
    "class": lambda beam: beam.Scan,
    "function": lambda beam: beam.twice,
    "instance in a set": lambda beam: {beam.Kind.DARK},
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_the_users_own_module_travels_with_it(client: Client, beam: Any, name: str) -> None:
    value = VALUES[name](beam)

    assert client.submit(same, value).result(PATIENCE_S) == value
    assert client.submit(same, value=value).result(PATIENCE_S) == value
    assert client.gather(client.map(same, [1, value, 2]), PATIENCE_S) == [1, value, 2]
    assert client.submit(list, [value]).result(PATIENCE_S) == [value]  # a builtin brings no module of its own


def test_partials_and_methods_of_the_users_own_module(client: Client, beam: Any) -> None:
    with client.executor() as executor:
        assert executor.submit(beam.Scan(3).twice).result(PATIENCE_S) == 6
        assert executor.submit(operator.call, partial(beam.twice, 4)).result(PATIENCE_S) == 8
        assert list(executor.map(operator.methodcaller("path"), [beam.Scan(1), beam.Scan(2)])) == ["1 m", "2 m"]


def test_a_stored_object_of_the_users_own_module(client: Client, beam: Any) -> None:
    stored = client.put(beam.Scan(5))

    assert client.submit(same, stored).result(PATIENCE_S) == beam.Scan(5)


def test_an_edited_module_is_sent_again(client: Client, beam: Any) -> None:
    assert client.submit(operator.methodcaller("path"), beam.Scan(1)).result(PATIENCE_S) == "1 m"
    path = Path(beam.__file__)
    path.write_text(MODULE.replace("return metres(self.n)", "return self.n * 1000"))
    importlib.reload(beam)

    assert client.submit(operator.methodcaller("path"), beam.Scan(1)).result(PATIENCE_S) == 1000


def test_a_class_of_the_users_own_package(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("beam_pkg", "beam_pkg/inner", "beam_plain/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "beam_pkg" / "__init__.py").write_text("")
    (tmp_path / "beam_pkg" / "inner" / "__init__.py").write_text("from ..base import Base\nclass Part(Base): pass\n")
    (tmp_path / "beam_pkg" / "base.py").write_text("class Base:\n    n = 7\n")
    (tmp_path / "beam_plain" / "deep" / "more.py").write_text("class Part:\n    n = 8\n")  # without __init__.py
    monkeypatch.syspath_prepend(tmp_path)
    inner, more = importlib.import_module("beam_pkg.inner"), importlib.import_module("beam_plain.deep.more")

    assert client.submit(operator.attrgetter("n"), inner.Part()).result(PATIENCE_S) == 7
    assert client.submit(operator.attrgetter("n"), more.Part()).result(PATIENCE_S) == 8


def test_an_exception_of_the_users_own_module_as_an_argument(client: Client, beam: Any) -> None:
    def throw(error: Exception) -> None:
        raise error

    with pytest.raises(beam.Failed, match="why"):
        client.submit(throw, beam.Failed("why")).result(PATIENCE_S)


# ---------------------------------------------------------------- nothing is kept alive


class Held:
    def method(self, _: Any = None) -> int:
        return 1

    def __call__(self, _: Any = None) -> int:
        return 2


def close_over(held: Held) -> Callable[[], int]:
    return lambda: held.method()


CALLS: dict[str, Callable[[Held], Any]] = {
    "method": lambda held: held.method,
    "instance": lambda held: held,
    "partial": lambda held: partial(same, held),
    "partial of a method": lambda held: partial(held.method, 1),
    "closure": close_over,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_submitted_callable_keeps_no_object_alive(client: Client, name: str) -> None:
    gone = [threading.Event() for _ in range(20)]
    with client.executor() as executor:
        for event in gone:
            held = Held()
            weakref.finalize(held, event.set)
            client.submit(CALLS[name](held)).result(PATIENCE_S)
            client.gather(client.map(same, [held]), PATIENCE_S)
            executor.submit(CALLS[name](held)).result(PATIENCE_S)
            del held
    gc.collect()

    assert [event.is_set() for event in gone] == [True] * 20
