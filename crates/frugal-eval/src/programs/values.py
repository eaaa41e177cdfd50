"""Values as JSON, without code: what comes from a program that is not trusted is only ever data."""

import collections
import datetime
import decimal
import fractions
import sys

if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)

PLAIN = frozenset({int, float, str, bool, type(None)})
# What has no notation in JSON: how it is taken apart, and put together again.
APART = {
    bytes: (lambda v: v.hex(), bytes.fromhex),
    bytearray: (lambda v: v.hex(), bytearray.fromhex),
    complex: (lambda v: [v.real, v.imag], lambda v: complex(*v)),
    range: (lambda v: [v.start, v.stop, v.step], lambda v: range(*v)),
    decimal.Decimal: (str, decimal.Decimal),
    fractions.Fraction: (lambda v: [v.numerator, v.denominator], lambda v: fractions.Fraction(*v)),
    datetime.datetime: (lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    datetime.date: (lambda v: v.isoformat(), datetime.date.fromisoformat),
    datetime.time: (lambda v: v.isoformat(), datetime.time.fromisoformat),
    datetime.timedelta: (
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda v: datetime.timedelta(*v),
    ),
}
NAMED = {kind.__name__: kind for kind in APART}
GROUPS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
BASES = (bool, int, float, str, list, tuple, dict, set, frozenset, bytes, bytearray)
DEEPEST = 200
MADE = {}


class Unsendable(TypeError):
    """A value that cannot be given to the other program."""


def encode(value, other=None, depth=0):
    """The value as JSON knows it; `other` says what stands for an object that is no value."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth > DEEPEST:
        raise Unsendable("a value that is nested too deeply")
    if kind in (list, tuple, set, frozenset):
        items = list(value)
        if not set(map(type, items)) <= PLAIN:
            items = [encode(item, other, depth + 1) for item in items]
        return [kind.__name__, items]
    if kind is dict:
        return ["dict", encode(list(value), other, depth + 1), encode(list(value.values()), other, depth + 1)]
    if kind in APART:
        return [kind.__name__, APART[kind][0](value)]
    if kind is collections.deque:
        return ["deque", encode(list(value), other, depth + 1), value.maxlen]
    for base in BASES:
        if isinstance(value, base) and not isinstance(value, type):
            return ["kind", kind.__name__, base.__name__, encode(base(value), other, depth + 1)]
    if other is None:
        raise Unsendable(f"a value of type `{kind.__name__}`")
    return other(value)


def decode(data, other=None):
    """The value behind what `encode` made."""
    if type(data) is not list:
        return data
    kind = data[0]
    if kind in GROUPS:
        items = data[1]
        if list in map(type, items):
            items = [decode(item, other) for item in items]
        return items if kind == "list" else GROUPS[kind](items)
    if kind == "dict":
        return dict(zip(decode(data[1], other), decode(data[2], other)))
    if kind in NAMED:
        return APART[NAMED[kind]][1](data[1])
    if kind == "deque":
        return collections.deque(decode(data[1], other), data[2])
    if kind == "kind":
        # As comparisons see it: equal to a value of its base, but of another type.
        value = decode(data[3], other)
        if data[2] == "bool" or data[2] not in {base.__name__ for base in BASES}:
            return value
        key = (str(data[1]), data[2])
        if key not in MADE:
            MADE[key] = type(key[0], (type(value),), {})
        return MADE[key](value)
    if other is None:
        raise Unsendable(f"`{kind}`")
    return other(data)
