//! A command that several processes do together: the flags, the local processes, and those elsewhere.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frugal::train::parallel::{
    Group, Layout, MAX_WORLD, ParallelError, Patience, RunIdentity, TcpGroup, listen, random_bytes,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::args::END_WITH_STDIN;

/// Holds the secret that the processes of a run share.
const SECRET: &str = "FRUGAL_PARALLEL_SECRET";
/// How long processes that were told to end may take before they are ended.
const GRACE: Duration = Duration::from_secs(10);

/// Training by several processes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Several processes")]
pub struct ParallelFlags {
    /// Train with several processes: `data=N` shares the rows of each step among N, of whom each keeps
    /// a part of the optimizer state (`zero=1`), of the gradients too (`zero=2`), of the weights too
    /// (`zero=3`); `pipeline=P` divides the blocks among P stages, through which `micro=M` parts of the
    /// rows go one behind another [default: P]; without --master all are started on this machine
    #[arg(long, value_name = "KEY=N,...", value_parser = spec)]
    parallel: Option<Layout>,
    /// Where rank 0 waits, HOST:PORT; every process is started by hand, with the same secret in
    /// FRUGAL_PARALLEL_SECRET
    #[arg(long, value_name = "ADDRESS", requires_all = ["parallel", "rank"])]
    master: Option<String>,
    /// Which of the processes this is, from 0
    #[arg(long, value_name = "R", requires = "master")]
    rank: Option<usize>,
    /// Seconds to wait for a process that computes
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, requires = "parallel", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    parallel_timeout: u64,
}

/// Reads `data=2,zero=1`.
fn spec(text: &str) -> Result<Layout, String> {
    let (mut data, mut zero, mut pipeline, mut micro) = (None, 0, 1, None);
    let mut seen: Vec<&str> = Vec::new();
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
        if seen.contains(&key.trim()) {
            return Err(format!("`{}` is given twice", key.trim()));
        }
        seen.push(key.trim());
        let number: usize = value
            .trim()
            .parse()
            .map_err(|_| format!("`{key}`: {value:?} is not a whole number"))?;
        match key.trim() {
            key @ ("data" | "pipeline" | "micro") if !(1..=MAX_WORLD).contains(&number) => {
                return Err(format!("`{key}={number}`: there can be 1 to {MAX_WORLD}"));
            }
            "data" => data = Some(number),
            "pipeline" => pipeline = number,
            "micro" => micro = Some(number),
            "zero" if number <= 3 => zero = number as u8,
            "zero" => return Err(format!("`zero={number}`: the stages of ZeRO are 0 to 3")),
            "tensor" if number == 1 => {}
            "tensor" => {
                return Err(format!(
                    "`tensor={number}`: it is planned and simulated (`frugal plan parallel`), not run: `data`, `zero` and `pipeline` are"
                ));
            }
            key => {
                return Err(format!(
                    "`{key}` is none of data, zero, pipeline, micro and tensor"
                ));
            }
        }
    }
    let layout = Layout {
        data: data.unwrap_or(1),
        pipeline,
        micro_batches: micro.unwrap_or(pipeline),
        zero,
    };
    match (layout.world(), data) {
        (0 | 1, None) => return Err("`data=N` or `pipeline=P` is missing".into()),
        (0 | 1, Some(_)) => return Err("`data=1`: several processes are 2 or more".into()),
        (world, _) if world > MAX_WORLD => {
            return Err(format!(
                "W = P·N: {pipeline} stages of {} replicas are {world} processes, and there can be {MAX_WORLD}",
                layout.data
            ));
        }
        _ => {}
    }
    layout.check().map_err(|error| match error {
        ParallelError::Join { reason } => reason,
        other => other.to_string(),
    })?;
    Ok(layout)
}

/// What this process is in a run.
pub enum Role {
    /// The only one.
    Alone,
    /// Rank 0, which writes and tells.
    First(First),
    /// Any other.
    Other(Other),
}

/// Rank 0.
pub struct First {
    spec: Layout,
    /// Where to wait, if the others are started by hand.
    master: Option<String>,
    identity: RunIdentity,
    patience: Patience,
}

/// Any other rank.
pub struct Other {
    spec: Layout,
    rank: usize,
    master: String,
    identity: RunIdentity,
    patience: Patience,
}

impl ParallelFlags {
    /// Whether there are to be several processes.
    pub fn is_given(&self) -> bool {
        self.parallel.is_some()
    }

    /// What they do.
    pub fn layout(&self) -> Option<Layout> {
        self.parallel
    }

    /// What this process is. `settings` must be the same for all.
    pub fn role(&self, settings: &impl Serialize) -> Result<Role> {
        let Some(spec) = self.parallel else {
            return Ok(Role::Alone);
        };
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(settings)?);
        hash.update(serde_json::to_vec(&spec)?);
        let secret = match (std::env::var(SECRET), &self.master) {
            (Ok(secret), _) if !secret.is_empty() => secret.into_bytes(),
            (_, None) => random_bytes().to_vec(),
            (_, Some(_)) => bail!(
                "with `--master` the variable {SECRET} must hold a secret, the same for all processes"
            ),
        };
        let identity = RunIdentity {
            world: spec.world(),
            secret,
            config: hash.finalize().into(),
        };
        let patience = Patience {
            message: Duration::from_secs(self.parallel_timeout),
            ..Patience::default()
        };
        match (self.rank, &self.master) {
            (Some(rank), _) if rank >= spec.world() => {
                bail!(
                    "--rank {rank}: the ranks of {} processes end at {}",
                    spec.world(),
                    spec.world() - 1
                )
            }
            (Some(rank), Some(master)) if rank > 0 => Ok(Role::Other(Other {
                spec,
                rank,
                master: master.clone(),
                identity,
                patience,
            })),
            _ => Ok(Role::First(First {
                spec,
                master: self.master.clone(),
                identity,
                patience,
            })),
        }
    }
}

impl First {
    /// Brings all processes together unless `stop` is set before, does the work, and waits for those that
    /// this one started.
    pub fn with_others<T>(
        self,
        stop: &AtomicBool,
        work: impl FnOnce(&mut Group) -> Result<T>,
    ) -> Result<T> {
        let (listener, mut processes) = match &self.master {
            Some(address) => (
                TcpListener::bind(address)
                    .with_context(|| format!("`--master {address}`: cannot wait there"))?,
                Processes(Vec::new()),
            ),
            None => {
                let listener = listen(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
                let address = listener.local_addr()?.to_string();
                let secret = hex(&self.identity.secret);
                (
                    listener,
                    Processes::start(self.spec.world(), &address, &secret)?,
                )
            }
        };
        // Those that this process starts get the secret as text.
        let identity = match &self.master {
            Some(_) => self.identity,
            None => RunIdentity {
                secret: hex(&self.identity.secret).into_bytes(),
                ..self.identity
            },
        };
        let met = TcpGroup::host(&listener, &identity, self.patience, stop, || {
            processes.check()
        });
        let mut group = Group::new(met?, self.spec)?;
        match work(&mut group) {
            Ok(done) => {
                drop(group);
                processes.end();
                Ok(done)
            }
            Err(error) => {
                group.abort(&error.to_string());
                drop(group);
                let ended = processes.end();
                Err(if ended.is_empty() {
                    error
                } else {
                    error.context(ended.join("; "))
                })
            }
        }
    }
}

impl Other {
    /// Joins rank 0 unless `stop` is set before, and does the work.
    pub fn with_others<T>(
        self,
        stop: &AtomicBool,
        work: impl FnOnce(&mut Group) -> Result<T>,
    ) -> Result<T> {
        let group = TcpGroup::join(&self.master, self.rank, &self.identity, self.patience, stop)?;
        let mut group = Group::new(group, self.spec)?;
        let done = work(&mut group);
        if let Err(error) = &done {
            group.abort(&error.to_string());
        }
        done
    }
}

/// Whether an error says that the run was stopped before it began.
pub fn was_stopped(error: &anyhow::Error) -> bool {
    let found = error.downcast_ref::<ParallelError>();
    matches!(found, Some(ParallelError::Stopped))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A process that this one started.
struct Started {
    rank: usize,
    child: Child,
    stderr: Option<JoinHandle<String>>,
}

/// The processes that this one started; they end with it.
struct Processes(Vec<Started>);

impl Processes {
    /// Starts this program again with the same arguments, once for each further rank.
    fn start(world: usize, address: &str, secret: &str) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file cannot be found")?;
        let mut processes = Self(Vec::new());
        let own = || {
            std::env::args_os()
                .skip(1)
                .filter(|word| word != END_WITH_STDIN)
        };
        for rank in 1..world {
            let mut command = Command::new(&program);
            command
                .arg(END_WITH_STDIN)
                .args(own())
                .args(["--master", address, "--rank", &rank.to_string()])
                .env(SECRET, secret)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            if std::env::var_os("RAYON_NUM_THREADS").is_none() {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                command.env("RAYON_NUM_THREADS", (cores / world).max(1).to_string());
            }
            let mut child = command
                .spawn()
                .with_context(|| format!("the process of rank {rank} cannot be started"))?;
            let stderr = child.stderr.take().map(|mut stderr| {
                // Read beside the run, which would wait for a full pipe.
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = stderr.read_to_end(&mut bytes);
                    String::from_utf8_lossy(&bytes).trim().to_owned()
                })
            });
            processes.0.push(Started {
                rank,
                child,
                stderr,
            });
        }
        Ok(processes)
    }

    /// That all of them are there.
    fn check(&mut self) -> Result<(), String> {
        for started in &mut self.0 {
            if let Ok(Some(status)) = started.child.try_wait() {
                let said = started.stderr.take().and_then(|read| read.join().ok());
                let said = said.filter(|said| !said.is_empty());
                let said = said.map_or_else(|| status.to_string(), |said| last_error(&said));
                return Err(format!("rank {} ended: {said}", started.rank));
            }
        }
        Ok(())
    }

    /// Waits for all to end, ends those that do not, and says which ended by a signal before.
    fn end(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        let until = Instant::now() + GRACE;
        for mut started in self.0.drain(..) {
            drop(started.child.stdin.take());
            let status = loop {
                match started.child.try_wait() {
                    Ok(Some(status)) => break Some(status),
                    Ok(None) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => {
                        // A process that does not end by itself is of no use any more.
                        let _ = started.child.kill();
                        let _ = started.child.wait();
                        break None;
                    }
                }
            };
            if let Some(status) = status.filter(|status| status.code().is_none()) {
                ended.push(format!(
                    "the process of rank {} ended: {status}",
                    started.rank
                ));
            }
        }
        ended
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end();
    }
}

/// The reason in what a process said.
fn last_error(said: &str) -> String {
    let error = said.lines().find_map(|line| line.strip_prefix("error: "));
    error.unwrap_or(said).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_run_is_refused_by_name() {
        assert_eq!(spec("data=2"), Ok(Layout::data(2, 0)));
        assert_eq!(spec("data=4,zero=3,tensor=1"), Ok(Layout::data(4, 3)));
        let staged = Layout {
            data: 1,
            pipeline: 3,
            micro_batches: 3,
            zero: 0,
        };
        assert_eq!(spec("pipeline=3"), Ok(staged));
        let more = Layout {
            data: 2,
            micro_batches: 8,
            zero: 1,
            ..staged
        };
        assert_eq!(spec("data=2,pipeline=3,micro=8,zero=1"), Ok(more));
        for (text, word) in [
            ("tensor=2", "`tensor=2`"),
            ("data=2,zero=4", "`zero=4`"),
            ("data=2,pipeline=2,zero=2", "`zero=2` with `pipeline=2`"),
            ("data=2,micro=2", "`micro=2` needs a pipeline"),
            ("data=100,pipeline=100", "W = P·N"),
            ("data=0", "`data=0`"),
            ("pipeline=5000", "`pipeline=5000`"),
            ("data=1", "`data=1`"),
            ("zero=1", "`data=N` or `pipeline=P` is missing"),
            ("data=two", "whole number"),
            ("replicas=2", "`replicas`"),
            ("2", "KEY=VALUE"),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
