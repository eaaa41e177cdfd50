//! Samples of a program and all that it starts, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, ExitStatus};
use std::time::Instant;

use super::{EnergyCounter, INTERVAL, Sample};

/// Ticks of a second; 100 on every Linux platform for long.
const TICKS: f64 = 100.0;
/// Bytes of a page, of the same kind.
const PAGE: f64 = 4096.0;

/// Samples a process that was started, and all that it starts, until it ends.
///
/// # Errors
/// If the system does not say whether it has ended.
pub fn watch(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<Sample>)> {
    let begin = Instant::now();
    let mut sampler = Sampler::new(child.id());
    let mut samples: Vec<Sample> = Vec::new();
    let before = ended_children();
    // Closer at first, so that a short run is seen more than once.
    let mut pause = INTERVAL / 16;
    loop {
        samples.extend(sampler.sample(begin.elapsed().as_secs_f64()));
        if let Some(status) = child.try_wait()? {
            // What it used after the last sample, and what its children did between samples, the
            // system has added up by now.
            let used = ended_children()
                .zip(before)
                .map(|(now, before)| now - before);
            if let (Some(last), Some(used)) = (samples.last().copied(), used) {
                samples.push(Sample {
                    seconds: begin.elapsed().as_secs_f64(),
                    processor_seconds: last.processor_seconds.max(used),
                    joules: sampler.joules().or(last.joules),
                    ..last
                });
            }
            return Ok((status, samples));
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(INTERVAL);
    }
}

/// Processor seconds of this process and of its children that have ended; `None` where there is no
/// `/proc`.
pub fn processor_seconds() -> Option<f64> {
    let stat = own()?;
    Some((stat.ticks + stat.ended_ticks) / TICKS)
}

fn ended_children() -> Option<f64> {
    own().map(|stat| stat.ended_ticks / TICKS)
}

fn own() -> Option<Stat> {
    parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Samples a program and all processes that it started, where `/proc` tells.
#[derive(Debug)]
pub struct Sampler {
    root: u32,
    counter: Option<EnergyCounter>,
    /// Processes of the program as they were seen last, by number.
    members: BTreeMap<u32, Stat>,
    /// Ticks of processes that ended without a process of the program to wait for them.
    lost: f64,
    /// Most ticks so far: processor time does not go back.
    ticks: f64,
}

impl Sampler {
    /// Samples the process of this number.
    pub fn new(root: u32) -> Self {
        Self {
            root,
            counter: EnergyCounter::open(),
            members: BTreeMap::new(),
            lost: 0.0,
            ticks: 0.0,
        }
    }

    /// The state now; `None` once the program has ended, or where there is no `/proc`.
    pub fn sample(&mut self, seconds: f64) -> Option<Sample> {
        let all = processes()?;
        all.get(&self.root)?;
        self.update(&all);
        let memory: f64 = self.members.values().map(|stat| stat.pages * PAGE).sum();
        // A program that has ended but was not waited for has no memory left.
        (memory > 0.0).then(|| Sample {
            seconds,
            memory,
            processor_seconds: self.ticks / TICKS,
            joules: self.joules(),
        })
    }

    fn joules(&mut self) -> Option<f64> {
        self.counter.as_mut().and_then(EnergyCounter::joules)
    }

    /// Takes over what `/proc` says: who belongs to the program, and what it used. A process that
    /// has ended is in the count of the one that waited for it, so each live process counts with
    /// its ended children; only those whose parents have all gone are remembered here.
    fn update(&mut self, all: &BTreeMap<u32, Stat>) {
        let same =
            |number: u32, stat: &Stat| all.get(&number).is_some_and(|now| now.start == stat.start);
        let mut now: BTreeMap<u32, Stat> = BTreeMap::new();
        for number in all.keys() {
            if let Some(path) = self.path_to_root(*number, all) {
                now.extend(path.into_iter().map(|n| (n, all[&n])));
            }
        }
        // What belonged to the program belongs to it still, whoever is its parent now.
        let kept = self.members.iter().filter(|(n, stat)| same(**n, stat));
        now.extend(kept.map(|(n, _)| (*n, all[n])));
        for (number, stat) in &self.members {
            if !same(*number, stat) && !self.waited_for(stat, &now) {
                self.lost += stat.ticks + stat.ended_ticks;
            }
        }
        self.members = now;
        let live: f64 = self
            .members
            .values()
            .map(|stat| stat.ticks + stat.ended_ticks)
            .sum();
        self.ticks = self.ticks.max(live + self.lost);
    }

    /// The processes from this one up to the program's first.
    fn path_to_root(&self, number: u32, all: &BTreeMap<u32, Stat>) -> Option<BTreeSet<u32>> {
        let mut path = BTreeSet::from([number]);
        let mut at = number;
        while at != self.root {
            at = all.get(&at)?.parent;
            if at == 0 || !path.insert(at) {
                return None;
            }
        }
        Some(path)
    }

    /// Whether a parent of a process that has ended, as they were seen last, is still there.
    fn waited_for(&self, ended: &Stat, now: &BTreeMap<u32, Stat>) -> bool {
        let mut seen = BTreeSet::new();
        let mut parent = ended.parent;
        while seen.insert(parent) {
            match (now.get(&parent), self.members.get(&parent)) {
                (Some(live), Some(last)) if live.start == last.start => return true,
                (_, Some(last)) => parent = last.parent,
                (_, None) => return false,
            }
        }
        false
    }
}

fn processes() -> Option<BTreeMap<u32, Stat>> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let one = |entry: std::fs::DirEntry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((number, parse(&text)?))
    };
    Some(entries.filter_map(one).collect())
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stat {
    parent: u32,
    ticks: f64,
    /// Ticks of children that have ended and were waited for.
    ended_ticks: f64,
    /// When it began, in ticks since the system did: tells processes of one number apart.
    start: f64,
    pages: f64,
}

/// A line of `/proc/N/stat`; the name in it may hold anything, so fields are counted from its end.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    // State is field 0 here: parent 1, user and system time 11 and 12, those of ended children 13
    // and 14, start 19, resident pages 21.
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        ended_ticks: number(13)? + number(14)?,
        start: number(19)?,
        pages: number(21)?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_program_can_be_sampled() {
        let mut sampler = Sampler::new(std::process::id());
        let first = sampler.sample(0.0).unwrap();
        let block = vec![1u8; 64 << 20];
        let busy = Instant::now();
        let mut sum = 0u64;
        while busy.elapsed() < Duration::from_millis(300) {
            sum = sum.wrapping_add(block.iter().map(|b| u64::from(*b)).sum::<u64>());
        }
        let second = sampler.sample(0.3).unwrap();
        assert!(
            sum > 0 && second.memory > first.memory + 32e6,
            "{first:?} {second:?}"
        );
        assert!(
            second.processor_seconds > first.processor_seconds,
            "{first:?} {second:?}"
        );
        let stat = parse("12 (a) b) (c) S 7 12 12 0 -1 4194560 9 0 0 0 150 50 30 12 20 0 1 0 5 1000 321 18446744073709551615").unwrap();
        let expected = Stat {
            parent: 7,
            ticks: 200.0,
            ended_ticks: 42.0,
            start: 5.0,
            pages: 321.0,
        };
        assert_eq!(stat, expected);
    }

    /// Forty processes that live for less time than lies between two samples.
    #[cfg(target_os = "linux")]
    #[test]
    fn time_of_short_lived_children_is_not_lost() {
        let work = "for i in $(seq 40); do sh -c 'j=0; while [ $j -lt 20000 ]; do j=$((j+1)); done'; done; times";
        let mut child = Command::new("sh")
            .args(["-c", work])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (status, samples) = watch(&mut child).unwrap();
        assert!(status.success());
        // What the shell itself says of its children, in `0m1.23s 0m0.04s`.
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
        let seconds = |word: &str| {
            let (minutes, seconds) = word.trim_end_matches('s').split_once('m').unwrap();
            60.0 * minutes.parse::<f64>().unwrap() + seconds.parse::<f64>().unwrap()
        };
        let expected: f64 = said
            .lines()
            .last()
            .unwrap()
            .split_whitespace()
            .map(seconds)
            .sum();
        let found = samples.last().unwrap().processor_seconds;
        assert!(
            expected > 0.1 && found > 0.85 * expected - 0.02 && found < 1.3 * expected + 0.2,
            "{found} and {expected} by the shell"
        );
    }

    #[test]
    fn ended_processes_count_once() {
        let stat = |parent, ticks, ended_ticks| Stat {
            parent,
            ticks,
            ended_ticks,
            start: 1.0,
            pages: 1.0,
        };
        let mut sampler = Sampler::new(10);
        let all = |list: &[(u32, Stat)]| list.iter().copied().collect::<BTreeMap<u32, Stat>>();
        sampler.update(&all(&[
            (10, stat(1, 5.0, 0.0)),
            (11, stat(10, 100.0, 0.0)),
            (12, stat(11, 30.0, 0.0)),
            (99, stat(1, 1e6, 0.0)),
        ]));
        assert_eq!(sampler.ticks, 135.0);
        // 12 ended and 11 waited for it; then 11 ended and 10 did.
        sampler.update(&all(&[
            (10, stat(1, 6.0, 0.0)),
            (11, stat(10, 101.0, 32.0)),
        ]));
        assert_eq!(sampler.ticks, 139.0);
        sampler.update(&all(&[(10, stat(1, 7.0, 134.0))]));
        assert_eq!(sampler.ticks, 141.0);
        // A child whose parent has gone goes on and ends under another one.
        sampler.update(&all(&[
            (10, stat(1, 7.0, 134.0)),
            (13, stat(10, 0.0, 0.0)),
            (14, stat(13, 50.0, 0.0)),
        ]));
        sampler.update(&all(&[(10, stat(1, 7.0, 135.0)), (14, stat(1, 60.0, 0.0))]));
        assert_eq!(sampler.ticks, 202.0);
        sampler.update(&all(&[(10, stat(1, 8.0, 135.0))]));
        assert_eq!(sampler.ticks, 203.0);
        // Another process under an old number is not that process.
        sampler.update(&all(&[
            (10, stat(1, 8.0, 135.0)),
            (
                14,
                Stat {
                    start: 9.0,
                    ..stat(1, 1e6, 0.0)
                },
            ),
        ]));
        assert_eq!(sampler.ticks, 203.0);
    }
}
