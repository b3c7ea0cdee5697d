"""Operators of CEL for numbers of different types: 2 == 2.0, and 2 * 2.5 is 5.0.

CEL refuses these where it knows the types, and refuses to calculate with them at all. JSON has one
type of number, and senders write 2 for 2.0. So the operators are declared anew: as in CEL, and for
each pair of number types. The library can compare them; arithmetic of two types is done here. It
has the type double, or that of the exact integer.

Integers over 64 bits, which CEL does not have, become doubles (`within_64_bits`).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import msgspec

from oncue.protocol.codec import INT_MAX, INT_MIN

Number = int | float
Arithmetic = Callable[[Number, Number], Number]

_NUMBERS = ("int", "uint", "double")
_MIXED = tuple((a, b) for a, b in product(_NUMBERS, _NUMBERS) if a != b)
_LESS = ("bool", "string", "bytes", "timestamp", "duration")
_NOT_PLAIN = frozenset((dict, list, int))  # all others are returned as they are
_pack = msgspec.msgpack.Encoder().encode

# (signature, type of the result); the library has the code.
_DECLARED = (
    *((f"_+_({t},{t})", t) for t in (*_NUMBERS, "string", "bytes", "list<~A>", "duration")),
    ("_+_(timestamp,duration)", "timestamp"),
    ("_+_(duration,timestamp)", "timestamp"),
    *((f"_-_({t},{t})", t) for t in (*_NUMBERS, "duration")),
    ("_-_(timestamp,timestamp)", "duration"),
    ("_-_(timestamp,duration)", "timestamp"),
    *((f"{op}({t},{t})", t) for op in ("_*_", "_/_") for t in _NUMBERS),
    ("_%_(int,int)", "int"),
    ("_%_(uint,uint)", "uint"),
    *((f"{op}(~A,~A)", "bool") for op in ("_==_", "_!=_")),
    *((f"{op}({t},{t})", "bool") for op in ("_<_", "_<=_", "_>_", "_>=_") for t in (*_NUMBERS, *_LESS)),
    *((f"{op}({a},{b})", "bool") for op in ("_<_", "_<=_", "_>_", "_>=_") for a, b in _MIXED),
    *((f"{op}({a},{b})", "bool") for op in ("_==_", "_!=_") for a, b in _MIXED),
    *((f"{op}(list<~A>,list<~B>)", "bool") for op in ("_==_", "_!=_")),
    *((f"{op}(map<~A;~B>,map<~C;~D>)", "bool") for op in ("_==_", "_!=_")),
    ("@in(~A,list<~A>)", "bool"),
    ("@in(~A,map<~A;~B>)", "bool"),
    *((f"@in({a},map<{b};~A>)", "bool") for a, b in _MIXED if b != "double"),
    ("_[_](map<~A;~B>,~A)", "~B"),
    *((f"_[_](map<{a};~A>,{b})", "~A") for a, b in _MIXED if a != "double"),
    *((f"_[_](list<~A>,{number})", "~A") for number in _NUMBERS),
    *((f"@in({a},list<{b}>)", "bool") for a, b in _MIXED),
    ("_?_:_(bool,~A,~A)", "~A"),
    *((f"_?_:_(bool,{a},{b})", "dyn") for a, b in _MIXED),
)


def _divide(a: Number, b: Number) -> Number:
    """Return a / b: of integers towards zero, as CEL has it, else by IEEE 754."""
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b:
        return a / b
    infinite = math.copysign(math.inf, math.copysign(1.0, a) * math.copysign(1.0, b))
    return infinite if a and not math.isnan(a) else math.nan


def _remainder(a: Number, b: Number) -> Number:
    """Return the remainder with the sign of a, as CEL has it for integers."""
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) % abs(b) if a >= 0 else -(abs(a) % abs(b))
    return math.fmod(a, b) if b and math.isfinite(a) else math.nan


_ARITHMETIC: dict[str, Arithmetic] = {
    "_+_": operator.add,
    "_-_": operator.sub,
    "_*_": operator.mul,
    "_/_": _divide,
    "_%_": _remainder,
}


def _calculated(calculate: Arithmetic) -> Arithmetic:
    def result(a: Number, b: Number) -> Number:
        found = calculate(a, b)
        return found if isinstance(found, float) or INT_MIN <= found <= INT_MAX else float(found)

    return result


def number_environment(cel: Any, variables: dict[str, Any]) -> Any:
    """Return an environment whose operators take numbers of all types.

    `cel`: the library, cel_expr_python.cel.
    """
    overloads: dict[str, list[dict[str, Any]]] = {}
    calculations: dict[str, Arithmetic] = {}
    for signature, result in _DECLARED:
        name, _, parameters = signature[:-1].partition("(")
        found = {"id": signature, "args": list(map(_type, parameters.split(",")))}
        overloads.setdefault(name, []).append(found | {"return": _type(result)})
    for name, a, b, calculate in _calculations():
        signature = f"{name}({a},{b})"
        kind = _type("double" if "double" in (a, b) else "dyn")
        overloads[name].append({"id": signature, "args": [_type(a), _type(b)], "return": kind})
        calculations[signature] = calculate
    config = {
        "stdlib": {"exclude_functions": [{"name": name} for name in overloads]},
        "functions": [{"name": name, "overloads": found} for name, found in overloads.items()],
    }
    declared = cel.NewEnvConfigFromYaml(json.dumps(config))
    return cel.NewEnv(config=declared, variables=variables, function_impls=calculations)


def _type(text: str) -> dict[str, Any]:
    """Return a type in the form of the configuration; ~A stands for any type."""
    name, _, parameter = text.partition("<")
    if name.startswith("~"):
        return {"type_name": name[1:], "is_type_param": True}
    return {"type_name": name} | ({"params": [_type(p) for p in parameter[:-1].split(";")]} if parameter else {})


def _calculations() -> Iterator[tuple[str, str, str, Arithmetic]]:
    for name, calculate in _ARITHMETIC.items():
        pairs = (*_MIXED, ("double", "double")) if name == "_%_" else _MIXED
        yield from ((name, a, b, _calculated(calculate)) for a, b in pairs)


def within_64_bits(data: Any) -> Any:
    """Return data with doubles instead of integers over 64 bits.

    Usually it is the same object.
    """
    try:
        _pack(data)
    except OverflowError:
        return _rounded(data)
    except (UnicodeEncodeError, RecursionError):  # the library says what it cannot take
        pass
    return data


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) if type(v) in _NOT_PLAIN else v for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) if type(v) in _NOT_PLAIN else v for v in value]
    if INT_MIN <= value <= INT_MAX:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
