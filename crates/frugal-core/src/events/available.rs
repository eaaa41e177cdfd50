//! How much memory this process can still have.

use std::path::{Path, PathBuf};

/// Bytes that this process can take beside what it has: what the system has left, or less where a
/// control group (a container, a batch system) allows less. `None` where the system does not say
/// (only Linux is read).
pub fn available_memory_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// Bytes that this process can take before a control group slows it down and takes its pages away
/// (`memory.high`), which is no limit that ends it; `None` where there is none.
pub fn unhindered_memory_bytes() -> Option<u64> {
    unhindered_under(Path::new("/"))
}

fn unhindered_under(root: &Path) -> Option<u64> {
    let all = groups(root).into_iter();
    all.filter_map(|group| group.left_of(group.high?)).min()
}

fn available_under(root: &Path) -> Option<u64> {
    let of_system = read(&root.join("proc/meminfo")).and_then(|text| field(&text, "MemAvailable:"));
    let of_groups = groups(root).into_iter().filter_map(|group| group.left());
    of_system.into_iter().chain(of_groups).min()
}

/// A control group that may limit memory.
struct Group {
    folder: PathBuf,
    limit: &'static str,
    /// What slows down instead; version 1 has no such thing.
    high: Option<&'static str>,
    used: &'static str,
    /// Key of the pages in `memory.stat` that are given up for others: files read some time ago.
    reclaimable: &'static str,
}

impl Group {
    /// Bytes left under its limit; `None` where it has none.
    fn left(&self) -> Option<u64> {
        self.left_of(self.limit)
    }

    /// The same under the limit in this file.
    fn left_of(&self, file: &str) -> Option<u64> {
        let number = |name: &str| read(&self.folder.join(name))?.trim().parse::<u64>().ok();
        // No limit is the word `max`, or in version 1 a number that no machine has.
        let limit = number(file).filter(|limit| *limit < 1 << 60)?;
        // A limit counts even where the system does not say how much is used.
        let used = number(self.used).unwrap_or(0);
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.reclaimable)?.trim().parse().ok())
            .unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
    }
}

/// The memory groups of this process, each with those above it, which limit it too.
fn groups(root: &Path) -> Vec<Group> {
    let Some(membership) = read(&root.join("proc/self/cgroup")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (mount, limit, high, used, reclaimable) = if controllers.is_empty() {
            (
                "sys/fs/cgroup",
                "memory.max",
                Some("memory.high"),
                "memory.current",
                "inactive_file ",
            )
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                None,
                "memory.usage_in_bytes",
                "total_inactive_file ",
            )
        } else {
            continue;
        };
        let mount = root.join(mount);
        // Within a container the path is that of the host, and the mount is the group itself.
        let own = mount.join(path.trim_start_matches('/'));
        let folders = own.ancestors().take_while(|dir| dir.starts_with(&mount));
        found.extend(folders.map(|folder| Group {
            folder: folder.into(),
            limit,
            high,
            used,
            reclaimable,
        }));
    }
    found
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       24000000 kB\nMemFree:         1000 kB\nMemAvailable:   20000000 kB\n",
    );

    #[test]
    fn without_groups_the_system_decides() {
        assert_eq!(
            available_under(system(&[MEMINFO]).path()),
            Some(20_480_000_000)
        );
        assert_eq!(available_under(system(&[]).path()), None);
    }

    #[test]
    fn the_limit_of_a_group_or_of_one_above_it_counts() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user/job\n"),
            ("sys/fs/cgroup/user/memory.max", "3000000000\n"),
            ("sys/fs/cgroup/user/memory.current", "1200000000\n"),
            (
                "sys/fs/cgroup/user/memory.stat",
                "anon 5\ninactive_file 200000000\n",
            ),
            ("sys/fs/cgroup/user/job/memory.max", "max\n"),
            ("sys/fs/cgroup/user/job/memory.current", "1000\n"),
        ]);
        assert_eq!(available_under(root.path()), Some(2_000_000_000));
    }

    #[test]
    fn what_only_slows_down_is_told_apart_from_what_ends_a_process() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user/job/step\n"),
            ("sys/fs/cgroup/user/memory.high", "max\n"),
            ("sys/fs/cgroup/user/memory.max", "9000\n"),
            ("sys/fs/cgroup/user/memory.current", "1000\n"),
            ("sys/fs/cgroup/user/job/memory.high", "5000\n"),
            ("sys/fs/cgroup/user/job/memory.max", "max\n"),
            ("sys/fs/cgroup/user/job/memory.current", "700\n"),
            ("sys/fs/cgroup/user/job/step/memory.high", "6000\n"),
        ]);
        assert_eq!(available_under(root.path()), Some(8000));
        assert_eq!(unhindered_under(root.path()), Some(4300));
        assert_eq!(unhindered_under(system(&[MEMINFO]).path()), None);
        // A limit of which nobody says how much is used.
        let silent = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/job\n"),
            ("sys/fs/cgroup/job/memory.max", "2000\n"),
        ]);
        assert_eq!(available_under(silent.path()), Some(2000));
    }

    #[test]
    fn in_a_container_the_mount_is_the_group() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/../../docker/abc\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "5000\n"),
        ]);
        assert_eq!(available_under(root.path()), Some(0));
    }

    #[test]
    fn groups_of_version_1_are_read_too() {
        let root = system(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,memory:/job\n4:pids:/job\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4000"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1500"),
            (
                "sys/fs/cgroup/memory/job/memory.stat",
                "total_inactive_file 500",
            ),
        ]);
        assert_eq!(available_under(root.path()), Some(3000));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says() {
        assert!(available_memory_bytes().unwrap() > 1 << 20);
    }
}
