"""Runs one function again and again: the reference's, or that of a solution.

`copy N` makes ready for N calls in a row, each of a function that was loaded anew, so that nothing which a call
leaves in its program helps the next. What a single call takes is lost in what waking the process takes.

Copying the input, compiling and everything else that is not the function happens before `go` is
answered or after `done` was said. The clock is not in this process, and nothing that is said here
is taken for a time or a verdict on an output.
"""

import copy
import gc
import json
import os
import sys
import time

incoming = os.fdopen(os.dup(0), "rb")
channel = os.dup(1)
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(2, 1)
sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000))


def say(message):
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def what(error):
    """How an exception counts, and what it says."""
    for kind, verdict in ((MemoryError, "memory"), (OverflowError, "overflow")):
        if isinstance(error, kind):
            return {"verdict": verdict}
    try:
        detail = repr(error)[:200]
    except BaseException:
        detail = type(error).__name__
    return {"verdict": "error", "detail": detail}


def serve():
    program, name, given = None, None, ()
    calls = result = failure = None
    gc.collect()
    for line in incoming:
        word = line.strip()
        if word == b"go":
            try:
                for entry, argument in calls:
                    result = entry(*argument)
            except BaseException as error:
                failure = what(error)
            os.write(channel, b"done\n")
        elif word.startswith(b"copy "):
            calls = result = failure = entry = argument = None
            try:
                calls = []
                for _ in range(int(word[5:])):
                    entry = lambda: None
                    if program is not None:
                        scope = {"time": time, "input": None, "print": None}
                        exec(program, scope)
                        entry = scope[name]
                    calls.append((entry, copy.deepcopy(given)))
                gc.collect()
                answer = {}
            except BaseException as error:
                answer = what(error)
            say(answer)
        elif word == b"give":
            if failure is None:
                try:
                    answer = {"output": encode(result, lambda _: ["object"])}
                except BaseException as error:
                    answer = what(error)
            else:
                answer = failure
            result = calls = entry = argument = None
            say(answer)
        else:
            try:
                work = json.loads(word)
                if "input" in work:
                    given = decode(work["input"])
                else:
                    name = work["entry_point"]
                    program = compile(work["prompt"] + "\n" + work["code"], "solution", "exec")
                answer = {}
            except BaseException as error:
                answer = what(error)
            say(answer)


serve()
