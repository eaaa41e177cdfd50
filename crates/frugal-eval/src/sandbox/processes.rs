//! What `/proc` says about processes.

use std::collections::HashMap;
use std::fs;

/// Numbers of all processes that can be seen.
pub(super) fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Parent and process group.
fn relations(pid: i32) -> Option<(i32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    Some((rest.next()?.parse().ok()?, rest.next()?.parse().ok()?))
}

/// Children of `parent`.
pub(super) fn children(parent: i32) -> Vec<i32> {
    all()
        .filter(|pid| relations(*pid).is_some_and(|(p, _)| p == parent))
        .collect()
}

/// `root` and everything that descends from it, and what is in the process group `root`.
pub(super) fn family(root: i32) -> Vec<i32> {
    let known: HashMap<i32, (i32, i32)> = all().filter_map(|p| Some((p, relations(p)?))).collect();
    let descends = |mut pid: i32| {
        for _ in 0..known.len() {
            match known.get(&pid) {
                _ if pid == root => return true,
                Some((parent, _)) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    known
        .iter()
        .filter(|(pid, (_, group))| *group == root || descends(**pid))
        .map(|(pid, _)| *pid)
        .collect()
}

fn kibibytes(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// Bytes that a process holds in memory and that no file backs, and its number of threads. Pages
/// shared with a fork count for both.
pub(super) fn usage(pid: i32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bytes = kibibytes(&status, "RssAnon:") + kibibytes(&status, "RssShmem:");
    (bytes * 1024, kibibytes(&status, "Threads:"))
}

/// The same with shared pages divided among those that share them; slow. `None` where the kernel
/// does not say.
pub(super) fn proportional(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some((kibibytes(&rollup, "Pss_Anon:") + kibibytes(&rollup, "Pss_Shmem:")) * 1024)
}
