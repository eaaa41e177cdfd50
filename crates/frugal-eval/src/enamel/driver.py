"""Measures solutions of one problem. Reads a JSON object from standard input, writes a JSON object for each event.

The clock, the timer and the output are taken hold of before any code of a solution runs.
"""

import copy
import json
import os
import random
import signal
import string
import sys
import time

copied = copy.deepcopy
timer = signal.setitimer
work = json.load(sys.stdin)
processor = work["clock"] == "processor"
clock = time.thread_time if processor else time.perf_counter
# Processor time ends a run that computes, the clock on the wall one that waits.
used, passed = signal.ITIMER_PROF, signal.ITIMER_REAL

channel = os.fdopen(os.dup(1), "w")
nothing = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nothing, descriptor)


def tell(**event):
    channel.write(json.dumps(event) + "\n")
    channel.flush()


class OutOfTime(BaseException):
    """No `except Exception` of a solution catches it."""


def out_of_time(*_):
    raise OutOfTime


signal.signal(signal.SIGALRM, out_of_time)
signal.signal(signal.SIGPROF, out_of_time)


def allow(seconds):
    """Ends the run after so long; 0 lets it go on."""
    timer(used, seconds if processor else 0)
    timer(passed, 20 * seconds + 1 if processor and seconds else seconds)


sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000))


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


def hodges_lehmann(times):
    """Median of the means of all pairs, each value with itself included."""
    pairs = sorted((a + b) / 2 for i, a in enumerate(times) for b in times[: i + 1])
    middle = len(pairs) // 2
    return pairs[middle] if len(pairs) % 2 else (pairs[middle - 1] + pairs[middle]) / 2


def call(program, argument, **extra):
    """Seconds and result of the entry point on a copy of the input."""
    scope = {"time": time, **extra}
    exec(program, scope)
    entry = scope[work["entry_point"]]
    argument = copied(argument)
    begin = clock()
    result = entry(*argument)
    return clock() - begin, result


prompt = work["prompt"]
repeats = [work["repeats"] if weight else 1 for weight in work["hardness"]]
levels, answers, references = [], [], []


def prepare():
    """Inputs of all levels, and what the reference answers to them in which time."""
    generator = compile(f"{prompt}\n{work['generator']}", "generator", "exec")
    reference = compile(f"{prompt}\n{work['reference']}", "reference", "exec")
    before = 0
    for level, (size, count) in enumerate(zip(work["sizes"], work["tests"])):
        cases = []
        for case in range(count):
            scope = {"time": time, **HELPERS}
            exec(generator, scope)
            random.seed(work["seed"] ^ work["problem"] ^ (before + case))
            cases.append(scope["generate_input"](size=size, lid=level, cid=case))
        before += count
        levels.append(cases)
    for level, cases in enumerate(levels):
        answers.append([])
        references.append([])
        for case in cases:
            runs = [call(reference, case) for _ in range(repeats[level])]
            answers[level].append(runs[-1][1])
            references[level].append([seconds for seconds, _ in runs])


try:
    prepare()
    checker = compile(f"{prompt}\n    pass\n{work['checker']}", "checker", "exec")
except BaseException as error:
    tell(failure=repr(error)[:500])
    sys.exit(1)
counted = [level for level, weight in enumerate(work["hardness"]) if weight]
slowest = max(hodges_lehmann(times) for level in counted for times in references[level])
allowed = work["timeout_factor"] * slowest + work["tolerance"]
tell(references=references)


def judge(number, code):
    try:
        program = compile(f"{prompt}\n{code}", "solution", "exec")
    except BaseException as error:
        tell(sample=number, level=0, case=0, verdict="error", detail=repr(error)[:200])
        return
    for level, cases in enumerate(levels):
        for index, case in enumerate(cases):
            times = []
            for _ in range(repeats[level]):
                verdict = detail = None
                try:
                    try:
                        allow(allowed)
                        seconds, output = call(program, case, input=None, print=None)
                    finally:
                        allow(0)
                    # A solution that changed its input must not change what it is checked against.
                    scope = {"time": time}
                    exec(checker, scope)
                    if scope["__check"](case, answers[level][index], output):
                        times.append(seconds)
                    else:
                        verdict = "wrong"
                except OutOfTime:
                    verdict = "timeout"
                except MemoryError:
                    verdict = "memory"
                except OverflowError:
                    verdict = "overflow"
                except BaseException as error:
                    verdict, detail = "error", repr(error)[:200]
                if verdict:
                    tell(sample=number, level=level, case=index, verdict=verdict, detail=detail)
                    return
            tell(sample=number, level=level, case=index, times=times)
    tell(sample=number, done=True)


for number, code in work["samples"]:
    tell(sample=number, begin=True)
    judge(number, code)
