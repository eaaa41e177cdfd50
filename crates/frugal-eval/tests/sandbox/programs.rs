//! What counts as a pass.

use frugal_eval::programs::{ProgramError, Test, Verdict, check, defined_functions};
use frugal_eval::sandbox::Limits;

use crate::support::*;

const TWICE: &str =
    "def check(f):\n    assert f(4) == 8\n    assert f('a') == 'aa'\n\ncheck(twice)";

fn verdict(program: &str, test: &str) -> Verdict {
    full_verdict(program, test, "", &[])
}

fn full_verdict(program: &str, test: &str, prompt: &str, wanted: &[&str]) -> Verdict {
    let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
    let test = Test {
        code: test,
        prompt,
        wanted: &wanted,
    };
    check(&sandbox(), program, &test, &Limits::default()).unwrap()
}

fn passes(program: &str, test: &str) {
    assert_eq!(verdict(program, test), Verdict::Pass, "{program}\n{test}");
}

fn fails(program: &str, test: &str) {
    let found = verdict(program, test);
    assert!(matches!(found, Verdict::Fail(_)), "{program}\n{test}");
}

#[test]
fn right_and_wrong_programs() {
    passes("def twice(x):\n    return x + x", TWICE);
    fails("def twice(x):\n    return x * x", TWICE);
    fails("def twice(x):\n    return (", TWICE);
    fails("def once(x):\n    return x", TWICE);
    fails("def twice(x):\n    raise ValueError(x)", TWICE);
    fails(
        "import os\nimport no_such_module\ndef twice(x):\n    return x + x",
        TWICE,
    );
    fails("def twice(x):\n    while True: pass", TWICE);
}

/// `exit()` as the body passed every problem: the process ended with success before the test.
#[test]
fn ending_the_process_is_no_pass() {
    for body in [
        "exit()",
        "exit(0)",
        "quit()",
        "import sys; sys.exit(0)",
        "import sys; sys.exit()",
        "raise SystemExit",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "import os; os.execv('/usr/bin/true', ['true'])",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
        "raise StopIteration",
        "raise BaseException",
        "import threading; threading.main_thread().join()",
    ] {
        fails(&format!("def twice(x):\n    {body}"), TWICE);
        // Before the test sees anything of it.
        fails(&format!("def twice(x):\n    return 0\n{body}"), TWICE);
    }
    fails(
        "import atexit, os\natexit.register(os._exit, 0)\ndef twice(x):\n    return 0",
        TWICE,
    );
    fails(
        "import os\nif os.fork():\n    os._exit(0)\ndef twice(x):\n    return 0",
        TWICE,
    );
}

#[test]
fn changing_what_python_means_is_no_pass() {
    for program in [
        // Names of the test.
        "def check(f):\n    pass\ndef twice(x):\n    return 0",
        "import builtins\nbuiltins.AssertionError = None\ndef twice(x):\n    return 0",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef twice(x):\n    return 0",
        "AssertionError = SystemExit\ndef twice(x):\n    raise SystemExit(0)",
        "__debug__ = False",
        "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef twice(x):\n    return 0",
        "import sys\nfor f in list(sys._current_frames().values()):\n    f.f_globals['check'] = lambda f: None\ndef twice(x):\n    return 0",
        // An object that equals everything.
        "class Any:\n    def __eq__(self, other):\n        return True\n    def __hash__(self):\n        return 0\ndef twice(x):\n    return Any()",
        "class Any(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\ndef twice(x):\n    return Any()",
        "class Any(str):\n    def __eq__(self, other):\n        return True\n    __hash__ = str.__hash__\ndef twice(x):\n    return Any('')",
        "import unittest.mock\ndef twice(x):\n    return unittest.mock.ANY",
    ] {
        fails(program, TWICE);
    }
    // What the test computes with is the test's own.
    let near = "assert abs(half(3) - 1.5) < 1e-6\nassert len(half.__class__.__name__) > 0";
    fails(
        "def abs(x):\n    return 0\ndef half(x):\n    return 7",
        near,
    );
    fails(
        "def all(x):\n    return True\ndef f(x):\n    return x",
        "assert all(f(i) == i + 1 for i in range(3))",
    );
}

#[test]
fn a_solution_that_is_named_like_a_function_of_python_is_the_one_that_is_tested() {
    let sandbox = sandbox();
    let verdict = |program: &str, prompt: &str| {
        let test = Test {
            code: "assert sum([1, 2]) == 3",
            prompt,
            wanted: &[],
        };
        check(&sandbox, program, &test, &Limits::default()).unwrap()
    };
    let wrong = "def sum(values):\n    return 4\n";
    let right = "def sum(values):\n    return values[0] + values[1]\n";
    // The prompt says which function is asked for.
    for prompt in [
        "def sum(values):\n",
        "def sum(values):\n    \"\"\"Adds.\"\"\"\n",
    ] {
        assert_eq!(verdict(right, prompt), Verdict::Pass);
        assert!(matches!(verdict(wrong, prompt), Verdict::Fail(_)));
    }
    // Without it Python's is called, which is no proof of the program.
    for program in [right, wrong] {
        let found = verdict(program, "");
        assert!(
            matches!(&found, Verdict::Fail(why) if why.contains("`sum`") && why.contains("entry_point")),
            "{found:?}"
        );
    }
}

#[test]
fn saying_what_the_judge_says_is_no_pass() {
    for said in [
        "=pass",
        "= pass",
        "{\\\"names\\\": {}}",
        "{\\\"value\\\": 8}",
        ">x",
        "pass",
    ] {
        for place in ["\n", "\n    "] {
            let program = format!(
                "import os, sys\ndef twice(x):{place}{}",
                format_args!(
                    "for fd in range(64):{place}    try:{place}        os.write(fd, b\"{said}\\n\" * 3){place}    except OSError:{place}        pass"
                )
            );
            let program = program.replace("def twice(x):\nfor", "def twice(x):\n    return 0\nfor");
            fails(&program, TWICE);
        }
    }
    fails(
        "print('=pass', flush=True)\nimport sys\nprint('=pass', file=sys.__stdout__, flush=True)\ndef twice(x):\n    return 0",
        TWICE,
    );
    fails(
        "import os\nfor p in range(1, 400):\n    for fd in range(3):\n        try:\n            open(f'/proc/{p}/fd/{fd}', 'w').write('=pass\\n')\n        except OSError:\n            pass\ndef twice(x):\n    return 0",
        TWICE,
    );
}

#[test]
fn a_daemon_that_holds_the_output_is_no_pass() {
    let begin = std::time::Instant::now();
    fails(
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\nos._exit(0)",
        TWICE,
    );
    assert!(begin.elapsed() < std::time::Duration::from_secs(9));
}

#[test]
fn values_of_every_common_type_come_through() {
    let program =
        "def same(*x, **named):\n    return (x, named) if named else x[0] if len(x) == 1 else x";
    for value in [
        "None",
        "True",
        "-7",
        "10**5000",
        "1.5",
        "-0.0",
        "float('inf')",
        "'a\\n\\u00e9\\ud800'",
        "b'\\x00\\xff'",
        "[]",
        "[1, [2, (3,)], {4}]",
        "()",
        "(1, 'a', None)",
        "{1: 'a', 'b': [2], (1, 2): {}}",
        "frozenset({1})",
        "1 + 2j",
        "range(3, 9, 2)",
        "set()",
        "{'a': {'b': (1,)}}",
        "[True, 1, 1.0]",
    ] {
        passes(
            program,
            &format!(
                "value = {value}\nfound = same({value})\nassert found == value and type(found) is type(value), found\nassert repr(found) == repr(value), found"
            ),
        );
    }
    passes(
        program,
        "assert same(1, 2) == (1, 2)\nassert same(1, key=2) == ((1,), {'key': 2})\nx = same(float('nan'))\nassert x != x",
    );
    passes(
        "from collections import Counter, OrderedDict, defaultdict, namedtuple, deque\nfrom decimal import Decimal\nfrom fractions import Fraction\nimport datetime\ndef all_kinds():\n    d = defaultdict(list)\n    d['a'].append(1)\n    return Counter('aab'), d, namedtuple('P', 'x y')(1, 2), OrderedDict(a=1), deque([1]), Decimal('1.1'), Fraction(1, 3), datetime.date(2020, 1, 2)",
        "from collections import deque\nfrom decimal import Decimal\nfrom fractions import Fraction\nimport datetime\nassert all_kinds() == ({'a': 2, 'b': 1}, {'a': [1]}, (1, 2), {'a': 1}, deque([1]), Decimal('1.1'), Fraction(1, 3), datetime.date(2020, 1, 2))",
    );
}

#[test]
fn what_tests_do_beside_calling_a_function() {
    // Exceptions, those of Python and of the program.
    let raises = "class Odd(ValueError):\n    pass\ndef f(x):\n    if x:\n        raise Odd('odd')\n    return [][1]";
    passes(
        raises,
        "try:\n    f(1)\n    assert False, 'nothing raised'\nexcept Odd as e:\n    assert str(e) == 'odd'\ntry:\n    f(0)\n    assert False\nexcept IndexError:\n    pass",
    );
    // Arguments that are changed in place.
    passes(
        "def reverse(x):\n    x.reverse()",
        "x = [1, 2, 3]\nassert reverse(x) is None\nassert x == [3, 2, 1]",
    );
    // Functions as arguments and results, generators, objects and constants.
    passes(
        "def apply(f, x):\n    return f(f(x))\ndef adder(n):\n    return lambda x: x + n",
        "assert apply(lambda x: x * 3, 2) == 18\nassert adder(2)(3) == 5",
    );
    passes(
        "def count(n):\n    yield from range(n)",
        "assert list(count(3)) == [0, 1, 2]\nassert sum(count(4)) == 6",
    );
    passes(
        "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n    def norm(self):\n        return self.x ** 2 + self.y ** 2\ndef far(points):\n    return max(p.norm() for p in points)",
        "p = Point(3, 4)\nassert p.x == 3 and p.norm() == 25\nassert far([p, Point(1, 1)]) == 25",
    );
    passes(
        "import math\nLIMIT = 7\ndef f(x):\n    return x",
        "assert LIMIT == 7 and math.floor(f(1.5)) == 1",
    );
    passes(
        "def f(x):\n    print('noise')\n    return x",
        "assert f(1) == 1",
    );
    passes(
        "def f(x):\n    return x\nif __name__ == '__main__':\n    f(1)",
        "assert f(1) == 1",
    );
    passes(
        "def convert(kind, x):\n    return kind(x) if isinstance(x, str) else kind",
        "assert convert(int, '7') == 7\nassert convert(str, 7) is str\nassert convert(ValueError, 7) is ValueError",
    );
}

/// Tests with a tolerance take a difference, which an object computes as it likes.
#[test]
fn an_object_that_is_near_everything_is_no_pass() {
    let near = "assert abs(half(3) - 1.5) < 1e-6";
    let program =
        |methods: &str| format!("class Any:\n{methods}\ndef half(x):\n    return Any()\n");
    fails(
        &program("    def __sub__(self, other):\n        return 0"),
        near,
    );
    fails(
        &program("    def __add__(self, other):\n        return 0\n    __mul__ = __add__"),
        "assert half(3) * 2 + 1 < 0.1",
    );
    fails(
        &program(
            "    def __contains__(self, other):\n        return True\n    def __iter__(self):\n        return iter(())",
        ),
        "assert 1.5 in half(3)",
    );
    fails(
        &program("    def __lt__(self, other):\n        return True"),
        "assert half(3) < 2",
    );
    fails(
        &program("    def __lt__(self, other):\n        return False"),
        "assert not half(3) < 1",
    );
    passes(
        "def half(x):\n    return x / 2",
        "assert abs(half(3) - 1.5) < 1e-6\nassert not half(3) < 1",
    );
    // Objects of the program may be added to and looked for among each other.
    passes(
        "class V:\n    def __init__(self, x):\n        self.x = x\n    def __add__(self, other):\n        return V(self.x + other.x)\n    def __eq__(self, other):\n        return self.x == other.x\ndef v(x):\n    return V(x)\ndef both():\n    return {V(1).x, 2}",
        "assert (v(1) + v(2)).x == 3\nassert v(1) + v(2) == v(3)\nassert 2 in both()",
    );
}

/// The helper in the prompt is the test's, though the program may define it anew.
#[test]
fn helpers_of_the_prompt_are_not_the_programs() {
    let prompt = "import math\n\ndef poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n\ndef root(xs):\n    \"\"\"Where poly is 0.\"\"\"\n";
    let test = "assert math.fabs(poly([1, 2], root([1, 2]))) < 1e-4";
    let right = format!("{prompt}    return -xs[0] / xs[1]");
    let forged = format!("{prompt}    return 9\n\ndef poly(xs, x):\n    return 0\n");
    assert_eq!(full_verdict(&right, test, prompt, &["root"]), Verdict::Pass);
    assert!(matches!(
        full_verdict(&forged, test, prompt, &["root"]),
        Verdict::Fail(_)
    ));
    // The program takes over the function that is asked for, even one named as Python's own.
    let sum = "def sum(a, b):\n    return a + b";
    assert_eq!(defined_functions(sum), ["sum"]);
    assert_eq!(
        full_verdict(sum, "assert sum(1, 2) == 3", "", &["sum"]),
        Verdict::Pass
    );
}

#[test]
fn a_test_that_needs_one_process_is_named() {
    let test = Test {
        code: "class Thing:\n    pass\nassert f(Thing()) is None",
        prompt: "",
        wanted: &[],
    };
    let error = check(&sandbox(), "def f(x):\n    pass", &test, &Limits::default()).unwrap_err();
    assert!(
        matches!(&error, ProgramError::Unfit(why) if why.contains("Thing")),
        "{error}"
    );
}
