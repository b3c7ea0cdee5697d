"""Exceptions as data: class, arguments, attributes, notes, members of groups.

    worker: to_data(error) ──► bytes in Failure.exception ──► client: from_data(bytes, load)

Builtin exceptions with plain arguments are data alone. The class of another exception, and values
that are no data, are pickles inside, which only a client that trusts the endpoint loads. `__init__`
is not called again: the arguments of many classes differ from their `args`.

A value is itself (None, bool, int of 64 bits, float, str, bytes), or a list of letter and content:

l t s f  list, tuple, set, frozenset      d  dict, as pairs      i  larger int, in hex
c        complex, as two floats           u  str with lone surrogates, as bytes
e        exception (ExceptionData)        p  payload, and text for those who may not load it
r        text about a value that cannot travel
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import itertools
import reprlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from oncue.errors import TaskFailed
from oncue.pickles import Pickler
from oncue.pickles.pickler import Ids
from oncue.protocol.codec import INT_MAX, INT_MIN, build_decoders
from oncue.protocol.payload import PICKLE
from oncue.protocol.records import NAME_CHARS, Stored

EXCEPTION_BYTES = 64 * 1024  # about; larger values are cut
_CUT_CHARS = 4_000
_DEPTH = 20
_MEMBERS = 500  # of groups, in all
_SPENT_CHARS = 40  # of a text when the budget is spent
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "s": set, "f": frozenset}
_LETTERS: dict[type, str] = {kind: letter for letter, kind in _CONTAINERS.items() if isinstance(kind, type)}
_OWN_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_encode = msgspec.msgpack.Encoder().encode
_NOTHING: Any = object()
Load = Callable[[bytes], Any]


class ExceptionData(Stored, frozen=True):
    """One exception. Its values are as in the module's docstring."""

    module: str
    qualname: str
    message: str  # "" for a builtin: it is made anew
    new: list[Any]  # arguments of its builtin base's __new__
    args: list[Any] | None = None  # None: as `new`
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)  # errno, filename, name ...
    state: dict[str, Any] = msgspec.field(default_factory=dict)  # its __dict__, with the notes
    cls: bytes = b""  # payload of its class, if that is no builtin
    whole: bytes = b""  # payload of the exception, if its class has its own way of pickling


class _TooLarge(Exception):
    """A pickle is over its limit."""


class _Limited(io.BytesIO):
    """Buffer that refuses more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, data: Any) -> int:
        self._left -= memoryview(data).nbytes
        if self._left < 0:
            raise _TooLarge
        return super().write(data)


# ---------------------------------------------------------------- to data


def class_name(kind: type) -> str:
    """Return the name of a class as a traceback shows it, cut."""
    module, name = str(kind.__module__), str(kind.__qualname__)[:NAME_CHARS]
    return name if module in ("builtins", "__main__") else f"{module[:NAME_CHARS]}.{name}"


def to_data(error: BaseException) -> bytes:
    """Return the exception as bytes of about EXCEPTION_BYTES at most.

    Raises what its class raises when its attributes are read.
    """
    return _encode(_Writer().exception(error, 0))


class _Writer:
    """Writes one exception and what it holds, within a budget."""

    def __init__(self) -> None:
        self._left = EXCEPTION_BYTES
        self._members = _MEMBERS

    def exception(self, error: BaseException, depth: int) -> ExceptionData:
        cls, base = type(error), _builtin_base(type(error))
        module, qualname = str(cls.__module__), str(cls.__qualname__)
        builtin = _builtin(module, qualname) is cls
        new, args = list(base.__reduce__(error)[1]), list(error.args)
        if isinstance(error, BaseExceptionGroup):
            written = [self.value(error.message, depth), ["l", self._group(error, depth)]]
            args = new
        else:
            written = [self.value(v, depth) for v in new]
        same = len(args) == len(new) and all(a is b for a, b in zip(args, new, strict=True))
        return ExceptionData(
            module=self._text(module),
            qualname=self._text(qualname),
            message="" if builtin or not depth else self._text(_shown(str, error)),
            new=written,
            args=None if same else [self.value(v, depth) for v in args],
            attributes={name: self.value(v, depth) for name, v in _attributes(error)},
            state={str(name): self.value(v, depth) for name, v in vars(error).items()},
            cls=b"" if builtin else self._pickle(cls),
            whole=self._pickle(error) if _pickles_itself(cls) else b"",
        )

    def _group(self, error: BaseExceptionGroup[Any], depth: int) -> list[Any]:
        """Return the group's exceptions, of which it must have one."""
        if depth >= _DEPTH:
            return [["e", ExceptionData("builtins", "Exception", "", [self._text(_shown(str, error))])]]
        shown = error.exceptions[: max(1, self._members)]
        self._members -= len(shown)
        return [["e", self.exception(e, depth + 1)] for e in shown]

    def value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            return value if INT_MIN <= value <= INT_MAX else self._large_int(value)
        if kind is str:
            return self._str(value)
        if kind is bytes:
            return self._cut(value)
        if kind is complex:
            return ["c", [value.real, value.imag]]
        if depth >= _DEPTH or self._left <= 0:
            return ["r", self._repr(value)]
        if kind in _LETTERS:
            return [_LETTERS[kind], [self.value(v, depth + 1) for v in self._some(value)]]
        if kind is dict:
            return ["d", [[self.value(k, depth + 1), self.value(v, depth + 1)] for k, v in self._some(value.items())]]
        if isinstance(value, BaseException):
            return ["e", self.exception(value, depth + 1)]
        pickled = self._pickle(value)
        return ["p", pickled, self._repr(value)] if pickled else ["r", self._repr(value)]

    def _some(self, values: Any) -> Iterator[Any]:
        for value in values:
            if self._left <= 0:
                return
            self._left -= 8
            yield value

    def _large_int(self, value: int) -> list[Any]:
        if value.bit_length() > _CUT_CHARS * 4:
            return ["r", f"an int of {value.bit_length():,} bits"]
        return ["i", hex(value)]

    def _str(self, value: str) -> Any:
        value = self._cut(value)
        try:
            value.encode()
        except UnicodeEncodeError:  # as in names of files that are no UTF-8
            return ["u", value.encode("utf-8", "surrogatepass")]
        return value

    def _cut(self, value: Any) -> Any:
        """Return a str or bytes, or its beginning if the budget is spent."""
        if len(value) > max(self._left, 0):
            most = _CUT_CHARS if self._left > 0 else _SPENT_CHARS
            value = value[:most] + ("…" if isinstance(value, str) else b"...")
        self._left -= len(value)
        return value

    def _text(self, text: str) -> str:
        text = text[: _CUT_CHARS if self._left > 0 else _SPENT_CHARS]
        self._left -= len(text)
        return text.encode("utf-8", "backslashreplace").decode()

    def _repr(self, value: Any) -> str:
        return self._text(_shown(reprlib.repr, value))

    def _pickle(self, value: Any) -> bytes:
        """Return a payload with the value; b"" if it cannot be pickled, or is too large."""
        if self._left <= 0:
            return b""
        buffer = _Limited(self._left)
        try:
            buffer.write(PICKLE)
            Pickler(buffer, Ids.KEPT).dump(value)
        except BaseException:  # whatever its methods raise: the failure itself is told
            return b""
        data = buffer.getvalue()
        self._left -= len(data)
        return data


def _builtin(module: str, qualname: str) -> type[BaseException] | None:
    found = getattr(builtins, qualname, None) if module == "builtins" else None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    return next(k for k in cls.__mro__ if _builtin(k.__module__, k.__qualname__) is k)


def _attributes(error: BaseException) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that C code or `__slots__` keep outside of the __dict__."""
    for cls in type(error).__mro__[:-1]:
        if cls is BaseException or cls is BaseExceptionGroup:
            continue
        for name, descriptor in vars(cls).items():
            slot = isinstance(descriptor, types.MemberDescriptorType | types.GetSetDescriptorType)
            if slot and not name.startswith("__"):
                with contextlib.suppress(AttributeError, TypeError):  # not set
                    if (value := getattr(error, name)) is not None:
                        yield name, value


def _pickles_itself(cls: type) -> bool:
    """True if the class, or a base that is no builtin, says how it is pickled."""
    own = [k for k in cls.__mro__ if k.__module__ != "builtins"]
    return any(name in vars(k) for k, name in itertools.product(own, _OWN_PICKLING))


def _shown(show: Callable[[Any], str], value: Any) -> str:
    try:
        return show(value)
    except BaseException as e:
        return f"(a {type(value).__name__} that cannot be shown: {type(e).__name__})"


# ---------------------------------------------------------------- from data


def from_data(data: bytes, load: Load, trusted: Callable[[], bool]) -> BaseException | None:
    """Return the exception; None if its class is not to be had here.

    `load` unpickles a payload, which **runs code**: it is called only if `trusted()`, which is
    called only for what is no data. An exception that is no Exception, as SystemExit, ends the
    caller's program: it needs trust too.
    """
    if not data:
        return None
    try:
        reader = _Reader(load, trusted)
        found = reader.exception(_decode(data))
        return found if isinstance(found, Exception) or reader.trusted() else None
    except Exception:  # bytes of an outsider, and a class may do anything
        return None


class _Reader:
    """Makes exceptions of data."""

    def __init__(self, load: Load, trusted: Callable[[], bool]) -> None:
        self._load = load
        self.trusted = functools.cache(trusted)

    def exception(self, data: ExceptionData) -> BaseException | None:
        state = {name: self.value(v) for name, v in data.state.items()}
        whole = self._loaded(data.whole)
        if isinstance(whole, BaseException):
            for note in state.get("__notes__", ()) if not hasattr(whole, "__notes__") else ():
                whole.add_note(note)
            return whole
        cls = self._loaded(data.cls) if data.cls else _builtin(data.module, data.qualname)
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            return None
        new = [self.value(v) for v in data.new]
        made: BaseException = _builtin_base(cls).__new__(cls, *new)
        if not isinstance(made, BaseExceptionGroup):
            made.args = tuple(new if data.args is None else map(self.value, data.args))
        for name, value in data.attributes.items():
            if not name.startswith("__") and hasattr(cls, name) and self._may_set(name):  # another Python may lack it
                with contextlib.suppress(AttributeError, TypeError, ValueError):
                    setattr(made, name, self.value(value))
        vars(made).update(state)
        return made

    def _may_set(self, name: str) -> bool:
        """Return False for an attribute by which an outsider would run code later.

        To show an error with `name_from`, Python 3.12 imports the module that `name` names.
        """
        return name != "name_from" or self.trusted()

    def member(self, data: ExceptionData) -> BaseException:
        """Return an exception of a group or argument; a stand-in if its class is not here."""
        made = self.exception(data)
        if made is None:
            name = data.qualname if data.module in ("builtins", "__main__") else f"{data.module}.{data.qualname}"
            made = TaskFailed(f"{name}: {data.message}", type_name=name)
        return made

    def value(self, value: Any) -> Any:
        if type(value) is not list:
            return value
        letter, content, *more = value
        if letter in _CONTAINERS:
            return _CONTAINERS[letter]([self.value(v) for v in content])
        match letter:
            case "d":
                return {self.value(k): self.value(v) for k, v in content}
            case "i":
                return int(content, 16)
            case "c":
                return complex(*content)
            case "u":
                return content.decode("utf-8", "surrogatepass")
            case "e":
                return self.member(msgspec.convert(content, ExceptionData))
            case "p":
                loaded = self._loaded(content)
                return more[0] if loaded is _NOTHING else loaded
        return content

    def _loaded(self, payload: bytes) -> Any:
        """Return the value of a payload; _NOTHING if there is none or it is not loaded."""
        if not payload or not self.trusted():
            return _NOTHING
        try:
            return self._load(payload)
        except (Exception, SystemExit):  # a class that is not here; an import may do anything
            return _NOTHING


build_decoders(globals())
_decode = msgspec.msgpack.Decoder(ExceptionData).decode
