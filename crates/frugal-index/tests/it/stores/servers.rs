//! Real servers, started for one test and ended with it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in a folder of its own.
pub(super) struct Server {
    /// As `frugal index --store` wants it.
    pub(super) address: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its helpers end when their input does.
        drop(self.process.stdin.take());
        for _ in 0..100 {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Runs a statement of SQL.
    pub(super) fn sql(&self, statement: &str) {
        let mut client = postgres::Client::connect(&self.address, postgres::NoTls).unwrap();
        client.batch_execute(statement).unwrap();
    }
}

/// Starts a script that prints the address, lives until its input ends, and needs a module.
#[allow(clippy::print_stderr)]
fn start(module: &str, script: &str) -> Option<Server> {
    let Some(python) = std::env::var_os("FRUGAL_STORES_PYTHON") else {
        eprintln!("skipped: FRUGAL_STORES_PYTHON names no Python with `{module}`");
        return None;
    };
    let check = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(Stdio::null())
        .status();
    if !check.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {} has no `{module}`", python.to_string_lossy());
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(&python)
        .args(["-c", script])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let begin = Instant::now();
    let address = lines.find_map(|line| line.ok()?.strip_prefix("address ").map(str::to_owned));
    let Some(address) = address else {
        let _ = process.kill();
        panic!("`{module}` did not start within {:?}", begin.elapsed());
    };
    // Whatever else it says must not block it.
    std::thread::spawn(move || lines.for_each(drop));
    Some(Server {
        address,
        process,
        _folder: folder,
    })
}

pub(super) fn postgres() -> Option<Server> {
    let script = "
import sys, urllib.parse, pgserver
server = pgserver.get_server(sys.argv[1] + '/data')
print('address', server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
";
    start("pgserver", script)
}

pub(super) fn chroma() -> Option<Server> {
    let script = "
import os, socket, subprocess, sys, time, urllib.request
with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
command = [os.path.join(os.path.dirname(sys.executable), 'chroma'), 'run', '--path', sys.argv[1], '--host', '127.0.0.1', '--port', str(port)]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
for _ in range(600):
    try:
        urllib.request.urlopen(f'http://127.0.0.1:{port}/api/v2/heartbeat', timeout=1).read()
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit(1)
print('address', f'chroma+http://127.0.0.1:{port}', flush=True)
sys.stdin.read()
server.terminate()
server.wait()
";
    start("chromadb", script)
}
