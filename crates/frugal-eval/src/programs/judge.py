"""Runs a test, in a process that the tested program cannot reach; what the test names and the
program defines is asked of the program.

Lines that begin with `>` are for the program, one that begins with `=` is the verdict.
"""

import ast
import builtins
import importlib
import json
import os
import sys

incoming = os.fdopen(os.dup(0), "r", encoding="utf-8")
outgoing = os.fdopen(os.dup(1), "w", encoding="ascii")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(2, 1)

functions = []
exceptions = {}
# How often the program was asked for something.
asked = 0


class Gone(BaseException):
    """The program has ended."""


class Unfit(BaseException):
    """The test needs something that two processes cannot share."""


def say(mark, text):
    outgoing.write(mark + text + "\n")
    outgoing.flush()


def local(value):
    """What stands for an object of this side: a remote one goes home, a function can be called."""
    if isinstance(value, Remote):
        return ["object", object.__getattribute__(value, "_number")]
    if isinstance(value, type) and getattr(builtins, value.__name__, None) is value:
        return ["builtin", value.__name__]
    if callable(value) and not isinstance(value, type):
        functions.append(value)
        return ["function", len(functions) - 1]
    raise Unfit(f"the test gives the program a value of type `{type(value).__name__}`")


def foreign(data):
    if data[0] == "builtin":
        kind = getattr(builtins, str(data[1]))
        if isinstance(kind, type):
            return kind
    return Remote(int(data[1]), str(data[2]), bool(data[3]))


def listen():
    while True:
        line = incoming.readline()
        if not line:
            raise Gone
        answer = json.loads(line)
        if "back" not in answer:
            return answer
        try:
            result = functions[int(answer["back"])](*decode(answer["args"], foreign))
            reply = {"value": encode(result, local)}
        except Exception as error:
            reply = {"raise": repr(error)[:500]}
        say(">", json.dumps(reply))


def fail(answer):
    """Raises what the program raised: its own kind where the test knows it, else the nearest."""
    for name in answer["raise"]:
        kind = exceptions.get(name) or getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise kind(str(answer.get("text", "")))
    raise RuntimeError(f"{answer['raise'][:1]} {answer.get('text', '')}")


def ask(do, args, named=None):
    global asked
    asked += 1
    request = {"do": do, "args": encode(list(args), local), "named": encode(named or {}, local)}
    say(">", json.dumps(request))
    answer = listen()
    if "raise" in answer:
        fail(answer)
    for index, value in answer.get("changed", ()):
        renew(args[index], decode(value, foreign))
    return decode(answer["value"], foreign)


def renew(old, new):
    """What the program changed in place is changed here too."""
    if type(old) is not type(new):
        return
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)


def compute(operation, one, other):
    """Arithmetic of two objects of the program. With a number of this side it would say how far the
    object is from that number, which is as good as equal."""
    result = ask(operation, [one, other]) if isinstance(other, Remote) else None
    if not isinstance(result, Remote):
        raise TypeError(f"arithmetic with an object of type `{object.__getattribute__(one, '_kind')}`")
    return result


class Remote:
    """An object of the program. It never equals a value of this side: the program would decide."""

    def __init__(self, number, kind, function):
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args, **named):
        return ask("call", [self, *args], named)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return ask("get", [self, name])

    def __setattr__(self, name, value):
        ask("set", [self, name, value])

    def __getitem__(self, key):
        return ask("item", [self, key])

    def __len__(self):
        return int(ask("len", [self]))

    def __iter__(self):
        steps = ask("iter", [self])
        while True:
            try:
                yield ask("next", [steps])
            except StopIteration:
                return

    def __next__(self):
        return ask("next", [self])

    def __bool__(self):
        return ask("bool", [self]) is True

    def __str__(self):
        return str(ask("str", [self]))

    def __repr__(self):
        return str(ask("repr", [self]))

    def __hash__(self):
        return hash(object.__getattribute__(self, "_number"))

    def __eq__(self, other):
        return isinstance(other, Remote) and ask("eq", [self, other]) is True

    def __ne__(self, other):
        return not self == other

    def __lt__(self, other):
        # Falsehood would be a verdict too, in a test that asks for it.
        return ask("lt", [self, other]) is True if isinstance(other, Remote) else NotImplemented

    def __contains__(self, other):
        # What is compared with a value of this side is compared here, item by item.
        if isinstance(other, Remote):
            return ask("contains", [self, other]) is True
        return any(item == other for item in self)

    def __add__(self, other):
        return compute("add", self, other)

    def __sub__(self, other):
        return compute("sub", self, other)

    def __mul__(self, other):
        return compute("mul", self, other)


def given(prompt):
    """What the prompt defines beside the function that is asked for, its last one, and its name."""
    scope, name = {"__name__": "__main__"}, None
    for text in (prompt, prompt + "\n    pass\n"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        if tree.body and isinstance(tree.body[-1], (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = tree.body.pop().name
        try:
            exec(compile(tree, "prompt", "exec"), scope)
        except Exception:
            scope = {"__name__": "__main__"}
        break
    return scope, name


def offered(names, wanted):
    """What the program defines, as far as the test may take it from there."""
    scope = {}
    for name, (sort, *what) in names.items():
        # A program that defines `abs` must not decide what the test's own `abs` says.
        if hasattr(builtins, name) and name not in wanted:
            continue
        if sort == "module":
            if what[0].split(".")[0] in sys.stdlib_module_names:
                scope[name] = importlib.import_module(what[0])
        elif sort == "exception":
            base = getattr(builtins, what[1], Exception)
            base = base if isinstance(base, type) and issubclass(base, Exception) else Exception
            scope[name] = exceptions[what[0]] = type(what[0], (base,), {})
        else:
            scope[name] = decode(what[0], foreign)
    return scope


def verdict():
    work = json.loads(incoming.readline())
    test = compile(work["test"], "test", "exec")
    hello = listen()
    if "raise" in hello:
        return "fail the program itself: " + str(hello.get("raise", [""])[0])
    helpers, name = given(work["prompt"])
    wanted = [*work["wanted"], name]
    scope = offered(hello["names"], wanted)
    # The prompt's own helpers come from the prompt.
    scope.update(helpers)
    exec(test, scope)
    if not asked:
        # The test may have meant the program's function and called Python's.
        read = {node.id for node in ast.walk(ast.parse(work["test"])) if isinstance(node, ast.Name)}
        own = [n for n in hello["names"] if n in read and hasattr(builtins, n) and n not in wanted]
        if own:
            return f"fail the test called Python's `{own[0]}`, never the program: name the function in `entry_point`"
    return "pass"


try:
    result = verdict()
except Unfit as error:
    result = f"unfit {error}"
except Gone:
    result = "fail the program ended"
except BaseException as error:
    result = "fail " + repr(error)[:300]
say("=", result.replace("\n", " "))
