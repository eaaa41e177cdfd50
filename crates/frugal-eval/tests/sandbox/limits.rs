//! Using more than there is.

use std::time::{Duration, Instant};

use frugal_eval::sandbox::{Ending, Limits, Options, Sandbox, SandboxError};

use crate::support::*;

#[test]
fn programs_run_and_their_errors_are_seen() {
    for (name, sandbox) in kinds() {
        let run = sandbox
            .run(
                "import sys\nprint(sys.stdin.read().upper(), __name__)",
                b"abc",
                &short(),
            )
            .unwrap();
        assert_eq!(
            (run.ending, run.stdout.as_str()),
            (Ending::Success, "ABC __main__\n"),
            "{name}: {run:?}"
        );
        let failed = sandbox.run("assert 1 == 2, 'no'", b"", &short()).unwrap();
        assert!(
            failed.ending == Ending::Failure && failed.stderr.contains("AssertionError: no"),
            "{name}: {failed:?}"
        );
    }
}

#[test]
fn an_endless_loop_that_ignores_every_signal_ends() {
    let limits = Limits {
        wall_seconds: 0.7,
        ..short()
    };
    for (name, sandbox) in kinds() {
        for program in [
            "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nwhile True:\n    try:\n        x = 1\n    except BaseException:\n        pass",
            // One that only sleeps uses no processor time.
            "import time\ntime.sleep(60)",
        ] {
            let begin = Instant::now();
            let run = sandbox.run(program, b"", &limits).unwrap();
            assert_eq!(run.ending, Ending::Timeout, "{name}: {run:?}");
            assert!(begin.elapsed() < Duration::from_secs(5), "{name}: {run:?}");
        }
    }
}

#[test]
fn processor_time_ends_a_program_that_ignores_the_signal_for_it() {
    let limits = Limits {
        cpu_seconds: 1,
        ..short()
    };
    let program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
    for (name, sandbox) in kinds() {
        let run = sandbox.run(program, b"", &limits).unwrap();
        assert_eq!(run.ending, Ending::Timeout, "{name}: {run:?}");
    }
}

#[test]
fn a_hog_of_memory_is_refused() {
    let limits = Limits {
        memory: 256 << 20,
        ..short()
    };
    for (name, sandbox) in kinds() {
        let run = attack(
            &sandbox,
            "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
            &limits,
        );
        assert_eq!(run.ending, Ending::Memory, "{name}: {run:?}");
    }
}

#[test]
fn memory_counts_over_all_children() {
    // Each child is below the limit, all together are not.
    let program = "
for child in range(4):
    if os.fork() == 0:
        x = bytearray(600 << 20)
        for i in range(0, len(x), 4096):
            x[i] = 1
        print('touched', flush=True)
        time.sleep(30)
        os._exit(0)
for child in range(4):
    os.wait()
";
    for (name, sandbox) in kinds() {
        let run = attack(
            &sandbox,
            program,
            &Limits {
                memory: 1 << 30,
                ..short()
            },
        );
        assert_eq!(run.ending, Ending::Memory, "{name}: {run:?}");
        assert!(run.stdout.lines().count() < 3, "{name}: {run:?}");
    }
}

#[test]
fn memory_that_a_fork_shares_counts_once() {
    let program = "
x = bytearray(300 << 20)
for child in range(3):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
for child in range(3):
    os.wait()
print('done')
";
    let limits = Limits {
        memory: 512 << 20,
        ..short()
    };
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, program, &limits);
        assert_eq!(
            (run.ending, run.stdout.as_str()),
            (Ending::Success, "done\n"),
            "{name}: {run:?}"
        );
    }
}

#[test]
fn a_fork_bomb_goes_nowhere() {
    let limits = Limits {
        processes: 8,
        wall_seconds: 5.0,
        ..short()
    };
    let counting = "
count = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        count += 1
    except OSError as error:
        print('refused', error.errno, count)
        break
";
    let wild = "
while True:
    try:
        os.fork()
    except OSError:
        pass
";
    for (name, sandbox) in kinds() {
        let begin = Instant::now();
        let run = attack(&sandbox, counting, &limits);
        // Where the kernel does not count for us the supervisor ends it.
        let refused = run.stdout.starts_with("refused 11 ");
        assert!(
            refused || run.ending == Ending::Processes,
            "{name}: {run:?}"
        );
        let wild = attack(&sandbox, wild, &limits);
        assert!(
            matches!(wild.ending, Ending::Timeout | Ending::Processes),
            "{name}: {wild:?}"
        );
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}");
    }
}

#[test]
fn with_one_process_there_is_no_second() {
    let limits = Limits {
        processes: 1,
        ..short()
    };
    for (name, sandbox) in kinds() {
        let run = attack(
            &sandbox,
            "import subprocess\nattempt('fork', os.fork)\nattempt('run', lambda: subprocess.run([sys.executable, '-c', '1']))\nattempt('spawn', lambda: os.posix_spawn(sys.executable, ['x'], {}))",
            &limits,
        );
        all_refused(name, &run, 3);
    }
}

#[test]
fn endless_output_is_cut() {
    let limits = Limits {
        output_bytes: 100_000,
        ..short()
    };
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, "while True:\n    print('x' * 10000)", &limits);
        assert!(
            run.ending == Ending::Output && run.stdout.len() <= 100_000,
            "{name}: {:?} {}",
            run.ending,
            run.stdout.len()
        );
    }
}

#[test]
fn a_daemon_that_holds_the_output_does_not_lengthen_the_run() {
    let program = "
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        import signal
        for s in (1, 2, 3, 13, 15):
            signal.signal(s, signal.SIG_IGN)
        time.sleep(45)
    os._exit(0)
os.wait()
print('gone', flush=True)
os._exit(0)
";
    for (name, sandbox) in kinds() {
        let begin = Instant::now();
        let run = attack(&sandbox, program, &short());
        assert!(begin.elapsed() < Duration::from_secs(8), "{name}: {run:?}");
        assert_eq!(run.stdout, "gone\n", "{name}: {run:?}");
    }
}

#[test]
fn nothing_is_left_running() {
    let mark = format!("{}", 30_000 + std::process::id());
    let program = format!(
        "
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            os.execv(sys.executable, ['frugal-left-behind', '-c', 'import time; time.sleep({mark})'])
        os._exit(0)
time.sleep(0.5)
"
    );
    for (name, sandbox) in kinds() {
        attack(&sandbox, &program, &short());
        std::thread::sleep(Duration::from_millis(200));
        let left = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| {
                let line = String::from_utf8_lossy(line).into_owned();
                line.contains("frugal-left-behind") && line.contains(&mark)
            })
            .count();
        assert_eq!(left, 0, "{name}");
    }
}

#[test]
fn a_program_that_kills_its_parent_does_not_end_the_run() {
    let program = "
import signal
for attack in (lambda: os.kill(os.getppid(), 9), lambda: os.kill(os.getppid(), 15), lambda: os.kill(1, 9)):
    try:
        attack()
    except OSError:
        pass
time.sleep(0.3)
print('still here')
";
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, program, &short());
        assert_eq!(
            (run.ending, run.stdout.as_str()),
            (Ending::Success, "still here\n"),
            "{name}: {run:?}"
        );
    }
}

#[test]
fn files_stay_small_and_few() {
    let limits = Limits {
        file_bytes: 1 << 20,
        scratch_bytes: 8 << 20,
        ..short()
    };
    let one = "
import signal
f = open('big', 'wb')
try:
    for _ in range(100):
        f.write(b'x' * 65536)
        f.flush()
except OSError as e:
    print('refused', e.errno)
print(os.path.getsize('big'))
";
    let many = "
for n in range(100):
    with open(f'file{n}', 'wb') as f:
        f.write(b'x' * (1 << 20))
    time.sleep(0.005)
time.sleep(1)
print('all written')
";
    let shared = "
for n in range(100):
    with open(f'/dev/shm/frugal-shared-{n}', 'wb') as f:
        f.write(b'x' * (1 << 20))
print('all written')
";
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, one, &limits);
        assert_eq!(run.stdout, "refused 27\n1048576\n", "{name}: {run:?}");
        for program in [many, shared] {
            let run = attack(&sandbox, program, &limits);
            assert!(
                !run.stdout.contains("all written") && run.ending != Ending::Success,
                "{name}: {run:?}"
            );
        }
    }
}

#[test]
fn a_python_that_is_none_is_named() {
    let error = Sandbox::with(&Options {
        python: Some("/nowhere/python9".into()),
        ..options()
    })
    .unwrap_err()
    .to_string();
    assert!(error.contains("--python"), "{error}");
}

#[test]
fn a_program_that_does_not_call_enter_is_not_started_again() {
    let error = Sandbox::new(None).unwrap_err();
    assert!(matches!(error, SandboxError::NoLauncher), "{error}");
}

/// A launcher that says what a kernel without Landlock makes the real one say.
#[test]
fn a_kernel_without_landlock_is_refused_with_the_flag_that_allows_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let launcher = folder.path().join("launcher");
    let why = "Landlock is not enabled in this kernel";
    assert_eq!(why.len(), 0o46);
    std::fs::write(
        &launcher,
        format!("#!/bin/sh\nprintf 'F\\046\\000\\000\\000{why}'\n"),
    )
    .unwrap();
    std::fs::set_permissions(&launcher, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = Sandbox::with(&Options {
        launcher: Some(launcher),
        ..options()
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, SandboxError::NotIsolated { .. })
            && text.contains(why)
            && text.contains("--no-isolation"),
        "{text}"
    );
}
