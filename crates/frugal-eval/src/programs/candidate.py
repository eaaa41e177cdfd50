"""Runs a program that is not trusted and answers calls of what it defines.

The program may do to this process whatever it likes: all that leaves it is taken for a value that a
function returned, nothing for a verdict.
"""

import builtins
import io
import json
import os
import sys
import types

incoming = os.fdopen(os.dup(0), "r", encoding="utf-8")
outgoing = os.fdopen(os.dup(1), "w", encoding="ascii")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(2, 1)

kept = []
exceptions = tuple(
    v for v in vars(builtins).values() if isinstance(v, type) and issubclass(v, BaseException)
)


def say(message):
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


def reference(value):
    """A number that stands for an object that stays here, or the name of a type of Python."""
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["builtin", value.__name__]
    for number, known in enumerate(kept):
        if known is value:
            break
    else:
        number = len(kept)
        kept.append(value)
    return ["object", number, type(value).__name__, callable(value)]


def foreign(data):
    if data[0] == "object":
        return kept[data[1]]
    if data[0] == "builtin":
        return getattr(builtins, data[1])
    if data[0] == "function":
        return lambda *args: back(data[1], args)
    raise ValueError(data[0])


def back(number, args):
    """Calls a function of the test."""
    say({"back": number, "args": encode(list(args), reference)})
    answer = json.loads(incoming.readline())
    if "raise" in answer:
        raise RuntimeError(answer["raise"])
    return decode(answer["value"], foreign)


def raised(error):
    names = [kind.__name__ for kind in type(error).__mro__]
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {"raise": names, "text": text}


OPERATIONS = {
    "get": getattr,
    "set": setattr,
    "item": lambda value, key: value[key],
    "len": len,
    "iter": iter,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "contains": lambda a, b: b in a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def perform(request):
    args = decode(request["args"], foreign)
    operation = request["do"]
    if operation != "call":
        return {"value": encode(OPERATIONS[operation](*args), reference)}
    named = decode(request["named"], foreign)
    mutable = [(i, a) for i, a in enumerate(args) if type(a) in (list, dict, set, bytearray)]
    before = [encode(a, reference) for _, a in mutable]
    answer = {"value": encode(args[0](*args[1:], **named), reference)}
    changed = [[i, now] for (i, a), old in zip(mutable, before) if (now := encode(a, reference)) != old]
    if changed:
        answer["changed"] = changed
    return answer


def names(scope):
    found = {}
    for name, value in scope.items():
        if name.startswith("__") or not isinstance(name, str):
            continue
        if isinstance(value, types.ModuleType):
            found[name] = ["module", value.__name__]
        elif isinstance(value, type) and issubclass(value, BaseException) and value not in exceptions:
            base = next(kind.__name__ for kind in value.__mro__ if kind in exceptions)
            found[name] = ["exception", value.__name__, base]
        else:
            try:
                found[name] = ["value", encode(value, reference)]
            except BaseException:
                found[name] = ["value", reference(value)]
    return found


def serve():
    work = json.loads(incoming.readline())
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.stdin = io.StringIO()
    try:
        exec(compile(work["program"], "program", "exec"), vars(module))
        say({"names": names(vars(module))})
    except BaseException as error:
        say(raised(error))
        return
    for line in incoming:
        try:
            answer = perform(json.loads(line))
        except BaseException as error:
            answer = raised(error)
        say(answer)


serve()
