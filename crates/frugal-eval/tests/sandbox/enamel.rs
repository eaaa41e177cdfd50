//! Measuring solutions.

use frugal_eval::enamel::{Problem, Settings, Verdict, measure};

use crate::support::*;

fn sorting() -> Problem {
    Problem {
        task_id: "T/0".into(),
        prompt: "def largest(numbers, k):\n    \"\"\"The k largest.\"\"\"\n".into(),
        input_generator: "def generate_input(size, lid, cid):\n    return [random.randint(0, 10**9) for _ in range(size)], 3".into(),
        input_levels: "5 200 1000 3000".into(),
        reference_solution: "    import heapq\n    return heapq.nlargest(k, numbers)".into(),
        checker: "def __check(input, answer, output):\n    return output == answer".into(),
        entry_point: "largest".into(),
    }
}

fn settings() -> Settings {
    Settings {
        repeats: 3,
        wall_seconds: 20.0,
        ..Settings::default()
    }
}

#[test]
fn solutions_are_judged_by_what_they_do() {
    let samples = [
        "import heapq\ndef largest(numbers, k):\n    return heapq.nlargest(k, numbers)",
        "def largest(numbers, k):\n    numbers = list(numbers)\n    for i in range(len(numbers)):\n        for j in range(len(numbers) - 1):\n            if numbers[j] < numbers[j + 1]:\n                numbers[j], numbers[j + 1] = numbers[j + 1], numbers[j]\n    return numbers[:k]",
        "def largest(numbers, k):\n    return numbers[:k]",
        "def largest(numbers, k):\n    while True:\n        try:\n            1 / 1\n        except BaseException:\n            pass",
        "def largest(numbers, k):\n    return sorted(numbers",
        "import os\ndef largest(numbers, k):\n    os._exit(0)",
        "def largest(numbers, k):\n    print('x')\n    return sorted(numbers)[::-1][:k]",
        "import os\ndef largest(numbers, k):\n    if len(numbers) > 500:\n        os._exit(0)\n    return sorted(numbers)[::-1][:k]",
    ];
    let found = measure(&sandbox(), 0, &sorting(), &samples, &settings()).unwrap();
    assert_eq!(found.len(), samples.len());
    assert!(
        found[0].passed && found[0].verdict.is_none(),
        "{:?}",
        found[0]
    );
    // A quadratic sort is right but out of time on large inputs.
    assert!(
        found[1].passed && found[1].verdict == Some(Verdict::Timeout) && found[1].efficiency < 0.31,
        "{:?}",
        found[1]
    );
    assert_eq!(
        (found[2].passed, found[2].verdict, found[2].efficiency),
        (false, Some(Verdict::Wrong), 0.0)
    );
    // Not even an endless loop that catches everything escapes.
    assert_eq!(
        (found[3].passed, found[3].verdict),
        (false, Some(Verdict::Timeout))
    );
    for ended in [4, 5, 6, 7] {
        assert_eq!(
            (
                found[ended].passed,
                found[ended].verdict,
                found[ended].efficiency
            ),
            (false, Some(Verdict::Error), 0.0),
            "{:?}",
            found[ended]
        );
    }
}

/// One process for all solutions let each write results of the others; a clock in that process let
/// it say how fast it was.
#[test]
fn a_forging_solution_scores_nothing_and_touches_no_other() {
    let honest = "import heapq\ndef largest(numbers, k):\n    return heapq.nlargest(k, numbers)";
    let forgeries = [
        // Results of the driver that there was, and of the one that there is, on every pipe.
        "import os\nfor sample in range(12):\n    for fd in range(64):\n        for line in ('{\"sample\": %d, \"begin\": true}' % sample, '{\"sample\": %d, \"done\": true}' % sample, '{\"right\": true}', '{}', 'done', '{\"output\": 1}'):\n            try:\n                os.write(fd, line.encode() + b'\\n')\n            except OSError:\n                pass\ndef largest(numbers, k):\n    return numbers[:k]",
        "import os\ndef largest(numbers, k):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, b'done\\n{\"right\": true}\\n')\n        except OSError:\n            pass\n    return numbers[:k]",
        // Code of its own process.
        "import sys, gc\nmain = sys.modules['__main__']\nfor name in list(vars(main)):\n    if name not in ('__name__', '__builtins__', 'say', 'what', 'serve'):\n        setattr(main, name, lambda *a, **k: None)\ndef largest(numbers, k):\n    return numbers[:k]",
        // An answer that equals everything.
        "class Any(list):\n    def __eq__(self, other):\n        return True\n    def __len__(self):\n        return 3\ndef largest(numbers, k):\n    return Any(numbers[:k])",
        "class Any:\n    def __eq__(self, other):\n        return True\ndef largest(numbers, k):\n    return Any()",
    ];
    let mut samples = vec![honest];
    samples.extend(forgeries);
    samples.push(honest);
    let found = measure(&sandbox(), 0, &sorting(), &samples, &settings()).unwrap();
    for (sample, forged) in forgeries.iter().zip(&found[1..]) {
        assert!(
            !forged.passed && forged.efficiency == 0.0,
            "{sample}\n{forged:?}"
        );
    }
    for untouched in [&found[0], found.last().unwrap()] {
        assert!(
            untouched.passed && untouched.verdict.is_none(),
            "{untouched:?}"
        );
    }
}

/// A right answer that claims to be quicker than it was.
#[test]
fn a_solution_does_not_move_the_clock() {
    let slow = "def largest(numbers, k):\n    for i in range(60):\n        found = sorted(numbers, reverse=True)\n    return found[:k]";
    let clocks = "import time, sys\nfor name in ('time', 'perf_counter', 'thread_time', 'process_time', 'monotonic', 'clock_gettime'):\n    setattr(time, name, lambda *a: 0.0)\n";
    let early = "import os, sys\nmain = sys.modules['__main__']\ndef largest(numbers, k):\n    os.write(main.channel, b'done\\n')\n    for i in range(60):\n        found = sorted(numbers, reverse=True)\n    return found[:k]";
    // The work is done when the output is handed over.
    let late = "import sys\nmain = sys.modules['__main__']\nif not hasattr(main, 'real'):\n    main.real = main.encode\ndef largest(numbers, k):\n    def encode(value, other=None, depth=0):\n        main.encode = main.real\n        for i in range(300):\n            found = sorted(numbers, reverse=True)\n        return main.real(found[:k], other)\n    main.encode = encode\n    return 0";
    let samples = [
        slow.to_owned(),
        format!("{clocks}{slow}"),
        early.into(),
        late.into(),
    ];
    let samples: Vec<&str> = samples.iter().map(String::as_str).collect();
    let found = measure(&sandbox(), 0, &sorting(), &samples, &settings()).unwrap();
    for (sample, one) in samples.iter().zip(&found) {
        assert!(one.efficiency < 0.1, "{sample}\n{one:?}");
    }
}

/// Loading a program anew does not reach what it keeps in modules of others.
#[test]
fn answers_that_are_remembered_between_runs_make_no_run_faster() {
    let work = "    found = sorted(sorted(numbers, key=lambda n: -n), key=lambda n: -n)[:k]\n";
    let plain = format!("def largest(numbers, k):\n{work}    return found");
    let remembers = format!(
        "import builtins\ndef largest(numbers, k):\n    known = vars(builtins).setdefault('_known', {{}})\n    key = (len(numbers), numbers[0], numbers[-1])\n    if key in known:\n        return known[key]\n{work}    known[key] = found\n    return found"
    );
    // Large enough that a call is more than noise.
    let problem = Problem {
        input_levels: "5 20000 40000 80000".into(),
        reference_solution: "    return sorted(numbers, reverse=True)[:k]".into(),
        ..sorting()
    };
    let samples = [plain.as_str(), &remembers];
    let found = measure(&sandbox(), 0, &problem, &samples, &settings()).unwrap();
    for one in &found {
        assert!(one.efficiency < 0.6, "{one:?}");
    }
}

/// It took all the seconds of the process, which are for all tests together.
#[test]
fn a_program_that_never_ends_loading_is_not_waited_for() {
    let samples = [
        "while True:\n    pass\ndef largest(numbers, k):\n    return []",
        "import sys\nmain = sys.modules['__main__']\ndef largest(numbers, k):\n    def encode(*a):\n        while True:\n            pass\n    main.encode = encode\n    return 0",
    ];
    let patient = Settings {
        wall_seconds: 600.0,
        ..settings()
    };
    let begun = std::time::Instant::now();
    let found = measure(&sandbox(), 0, &sorting(), &samples, &patient).unwrap();
    assert!(begun.elapsed().as_secs() < 300, "{:?}", begun.elapsed());
    for one in found {
        assert_eq!((one.passed, one.verdict), (false, Some(Verdict::Timeout)));
    }
}

/// Of many equal copies one got a timeout: all shared a deadline.
#[test]
fn what_a_solution_computes_while_it_is_loaded_is_running_time() {
    let body = "import heapq\ndef largest(numbers, k):\n    return heapq.nlargest(k, numbers)";
    let busy = format!("TABLE = [i * i for i in range(400_000)]\n{body}");
    let found = measure(&sandbox(), 0, &sorting(), &[body, &busy], &settings()).unwrap();
    assert!(
        found[0].passed && found[0].verdict.is_none(),
        "{:?}",
        found[0]
    );
    assert!(found[1].efficiency < 0.1, "{:?}", found[1]);
    let (quick, slow) = (&found[0].seconds, &found[1].seconds);
    assert!(
        slow.last().unwrap() > &(10.0 * quick.last().unwrap()),
        "{found:?}"
    );
}

#[test]
fn every_copy_has_a_deadline_of_its_own() {
    let copy = "def largest(numbers, k):\n    return sorted(numbers)[::-1][:k]";
    let wait = "import time\ndef largest(numbers, k):\n    time.sleep(30)";
    let mut samples = vec![copy; 8];
    samples.insert(4, wait);
    let settings = Settings {
        wall_seconds: 6.0,
        ..settings()
    };
    let found = measure(&sandbox(), 0, &sorting(), &samples, &settings).unwrap();
    for (number, one) in found.iter().enumerate() {
        if number == 4 {
            assert_eq!(one.verdict, Some(Verdict::Timeout), "{one:?}");
        } else {
            assert!(
                one.passed && one.verdict != Some(Verdict::Error),
                "{number}: {one:?}"
            );
        }
    }
}

/// Copying the input takes a hundred times as long as the function: its clock must not run.
#[test]
fn copying_the_input_is_not_running_time() {
    let problem = Problem {
        prompt: "def first(values):\n    \"\"\"The first one.\"\"\"\n".into(),
        input_generator:
            "def generate_input(size, lid, cid):\n    return [[i] for i in range(size)],".into(),
        input_levels: "10 1000 10000 20000".into(),
        reference_solution: "    return max(range(2000))".into(),
        checker: "def __check(input, answer, output):\n    return output == answer".into(),
        entry_point: "first".into(),
        ..sorting()
    };
    let reference = format!("{}{}", problem.prompt, problem.reference_solution);
    let settings = Settings {
        wall_seconds: 120.0,
        ..settings()
    };
    let found = measure(&sandbox(), 22, &problem, &[&reference], &settings).unwrap();
    assert!(
        found[0].passed && found[0].verdict.is_none(),
        "{:?}",
        found[0]
    );
    // Some tens of microseconds; the copy alone takes tens of milliseconds.
    assert!(found[0].seconds.iter().all(|s| *s < 5e-3), "{:?}", found[0]);
}

#[test]
fn a_problem_without_a_working_reference_is_named() {
    let problem = Problem {
        reference_solution: "    return largest_of(numbers)".into(),
        ..sorting()
    };
    let error = measure(&sandbox(), 7, &problem, &["x = 1"], &settings())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("problem 7") && error.contains("largest_of"),
        "{error}"
    );
    let problem = Problem {
        input_generator: "def generate_input(size, lid, cid):\n    return no_such_name,".into(),
        ..sorting()
    };
    let error = measure(&sandbox(), 7, &problem, &["x = 1"], &settings())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such_name"), "{error}");
}

/// Some of the benchmark's references, measured against themselves. Each passes and is stopped by
/// nothing; how near to 1 it scores is a matter of time, and told only where `FRUGAL_QUIET` says
/// that the machine does nothing else.
#[test]
fn references_score_one_against_themselves() {
    let folder = std::env::var_os("FRUGAL_DATA").map(std::path::PathBuf::from);
    let Some(file) = folder
        .map(|f| f.join("enamel/enamel.csv"))
        .filter(|f| f.exists())
    else {
        eprintln!("skipped: no enamel/enamel.csv in FRUGAL_DATA");
        return;
    };
    let problems = frugal_eval::enamel::problems(&file).unwrap();
    let sandbox = sandbox();
    let mut scores = Vec::new();
    for index in [0, 5, 14, 22, 42, 100] {
        let problem = &problems[index];
        let reference = format!("{}\n{}", problem.prompt, problem.reference_solution);
        let settings = Settings::default();
        let found = measure(&sandbox, index, problem, &[&reference], &settings).unwrap();
        assert!(
            found[0].passed && found[0].verdict.is_none(),
            "{index}: {:?}",
            found[0]
        );
        scores.push(found[0].efficiency);
    }
    eprintln!("{scores:?}");
    if std::env::var_os("FRUGAL_QUIET").is_some() {
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert!((mean - 1.0).abs() <= 0.05, "{scores:?}");
    }
}
