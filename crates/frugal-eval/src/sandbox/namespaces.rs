//! A process space, a network without devices and file systems that only one program sees.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Folders that everyone may write to, which the program gets empty ones in place of.
const SHARED: [&str; 2] = ["/tmp", "/dev/shm"];

/// Puts what this process starts from now on into new namespaces. `new_user` gives an ordinary
/// user the rights that this needs, over the new namespaces alone.
pub(super) fn enter(new_user: bool) -> Result<(), String> {
    let apart = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if geteuid().is_root() {
        match unshare(apart) {
            Err(Errno::EPERM) if new_user => {}
            other => return other.map_err(|e| format!("unshare: {e}")),
        }
    }
    let (user, group) = (geteuid(), getegid());
    unshare(apart | CloneFlags::CLONE_NEWUSER).map_err(|e| format!("unshare: {e}"))?;
    let map = |file: &str, text: &str| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("{file}: {e}"))
    };
    // Older kernels have no such file, and need none.
    let _ = map("setgroups", "deny");
    map("uid_map", &format!("0 {user} 1"))?;
    map("gid_map", &format!("0 {group} 1"))
}

/// Gives the first process of new namespaces its own `/proc`, `/tmp` and `/dev/shm`, and a scratch
/// folder in memory with the files that were in it. Folders that `needed` lies in stay as they
/// are. Returns the folders that are the program's own.
pub(super) fn mount_own(
    scratch: &Path,
    needed: &[PathBuf],
    bytes: u64,
    owner: Option<u32>,
) -> Result<Vec<PathBuf>, String> {
    let failed = |what: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", what.display());
    let nothing = None::<&str>;
    let root = Path::new("/");
    mount(
        nothing,
        root,
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .map_err(|e| failed(root, &e))?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let proc = Path::new("/proc");
    mount(
        Some("proc"),
        proc,
        Some("proc"),
        plain | MsFlags::MS_NOEXEC,
        nothing,
    )
    .map_err(|e| failed(proc, &e))?;
    let files = fs::read_dir(scratch)
        .and_then(|entries| {
            entries
                .map(|entry| {
                    let entry = entry?;
                    Ok((entry.file_name(), fs::read(entry.path())?))
                })
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(|e| failed(scratch, &e))?;
    let empty = |path: &Path, mode: &str| {
        let options = format!("size={bytes},nr_inodes=4096,mode={mode}");
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            plain,
            Some(options.as_str()),
        )
        .map_err(|e| failed(path, &e))
    };
    let mut own = Vec::new();
    for folder in SHARED.map(Path::new) {
        let wanted = needed.iter().any(|path| path.starts_with(folder));
        if folder.is_dir() && !wanted {
            empty(folder, "1777")?;
            own.push(folder.to_owned());
        }
    }
    if !scratch.is_dir() {
        fs::create_dir_all(scratch).map_err(|e| failed(scratch, &e))?;
    }
    empty(scratch, "700")?;
    for (name, bytes) in files {
        let path = scratch.join(name);
        fs::write(&path, bytes).map_err(|e| failed(&path, &e))?;
    }
    give(scratch, owner).map_err(|e| failed(scratch, &e))?;
    own.push(scratch.to_owned());
    Ok(own)
}

/// Makes a user the owner of the scratch folder.
pub(super) fn give(scratch: &Path, owner: Option<u32>) -> std::io::Result<()> {
    owner.map_or(Ok(()), |user| {
        std::os::unix::fs::chown(scratch, Some(user), Some(user))
    })
}
