"""Makes the inputs of one problem, keeps the reference's answers and compares outputs with them.

Neither the reference nor a solution runs in this process: what they return comes as plain values.
A line of JSON asks for something, a line of JSON answers.
"""

import json
import os
import random
import string
import sys
import time

incoming = os.fdopen(os.dup(0), "r", encoding="utf-8")
outgoing = os.fdopen(os.dup(1), "w", encoding="ascii")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(2, 1)
sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000))


def say(message):
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


# What the generators of the benchmark's inputs call.


def balanced(pairs, par):
    """Groups of brackets, each of which closes what it opens; `pairs` pairs in all."""
    groups, depth, left = [], 0, 2 * pairs
    while left:
        if depth == 0 or (depth < left and random.randint(0, 1)):
            if depth == 0:
                groups.append([])
            groups[-1].append(par[0])
            depth += 1
        else:
            groups[-1].append(par[1])
            depth -= 1
        left -= 1
    return ["".join(group) for group in groups]


def rand_parens(size, valid=True, par="()", sep=""):
    """A random string of about `size` brackets, or the list of its groups without a separator."""
    if valid:
        groups = balanced((size + 1) // 2, par)
        return groups if sep is None else sep.join(groups)
    half = (size + 1) // 2 - 1
    return rand_parens(half, True, par) + par[1] + par[0] + rand_parens(half, True, par)


def miller_rabin(n, k=5):
    """Whether n is probably prime."""
    if n < 4:
        return n in (2, 3)
    if n % 2 == 0:
        return False
    shift = ((n - 1) & -(n - 1)).bit_length() - 1
    odd = (n - 1) >> shift
    for _ in range(k):
        x = pow(random.randint(2, n - 2), odd, n)
        seen = x in (1, n - 1)
        for _ in range(shift - 1):
            if seen:
                break
            x = x * x % n
            seen = x == n - 1
        if not seen:
            return False
    return True


def rand_probably_prime(lb, ub=None):
    """A prime between the bounds, or between half of the only one and it."""
    if ub is None:
        high = max(lb, 3)
        low = high // 2
    else:
        low = max(lb, 0)
        high = max(2 * low, ub, 3)
    while True:
        n = random.randint(low, high)
        if miller_rabin(n):
            return n


def rand_primality(size, lid, cid):
    """A number that is hard to tell from a prime: well-known traps first, then primes, squares and products of two."""
    size = max(size, 4)
    traps = (30031, 561, 2, 125)  # 2*3*5*7*11*13 + 1, a Carmichael number, the even prime, a cube
    if lid == 0 and cid < len(traps):
        return traps[cid]
    root = int(size**0.5 + 1)
    if cid % 3 == 0:
        return rand_probably_prime(size)
    if cid % 3 == 1:
        return rand_probably_prime(root) ** 2
    return rand_probably_prime(root) * rand_probably_prime(root)


HELPERS = {
    f.__name__: f for f in (rand_parens, miller_rabin, rand_probably_prime, rand_primality)
} | {"random": random, "string": string}


def inputs(work):
    """Inputs of all levels."""
    generator = compile(f"{work['prompt']}\n{work['generator']}", "generator", "exec")
    levels, before = [], 0
    for level, (size, count) in enumerate(zip(work["sizes"], work["tests"])):
        cases = []
        for case in range(count):
            scope = {"time": time, **HELPERS}
            exec(generator, scope)
            random.seed(work["seed"] ^ work["problem"] ^ (before + case))
            cases.append(scope["generate_input"](size=size, lid=level, cid=case))
        before += count
        levels.append(cases)
    return levels


def value(line):
    """An output; an object that is no value equals nothing."""
    return decode(json.loads(line)["output"], lambda _: object())


def serve():
    try:
        work = json.loads(incoming.readline())
        levels = inputs(work)
        checker = compile(f"{work['prompt']}\n    pass\n{work['checker']}", "checker", "exec")
    except BaseException as error:
        say({"failure": repr(error)[:500]})
        return
    say({})
    answers = {}
    for line in incoming:
        level, case, wanted = json.loads(line)
        argument = levels[level][case]
        if wanted == "input":
            say(encode(tuple(argument)))
            continue
        given = incoming.readline()
        if wanted == "answer":
            answers[level, case] = value(given)
            say({})
            continue
        try:
            output = value(given)
            scope = {"time": time}
            exec(checker, scope)
            right = bool(scope["__check"](argument, answers[level, case], output))
        except BaseException:
            right = False
        say({"right": right})


serve()
