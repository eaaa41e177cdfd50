//! Rights that a process gives up for itself and for everything that it will start: files by
//! Landlock, system calls by seccomp, amounts by `setrlimit`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, getpid, setgid, setgroups, setuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::limits::Limits;

/// Where a dynamically linked interpreter's libraries are, and what the C library reads by itself.
const SYSTEM: [&str; 14] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/dev/zero",
];
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];
/// Newest interface that the rules here were written for.
const WRITTEN_FOR: ABI = ABI::V6;

/// Denies every file but the interpreter's for reading and `writable` for all; where the kernel
/// has it also TCP, abstract Unix sockets and signals to processes outside. Returns the version of
/// Landlock's interface, 0 where there is no Landlock.
pub(super) fn restrict_files(
    readable: &[PathBuf],
    writable: &[PathBuf],
) -> Result<u8, landlock::RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WRITTEN_FOR))?
        .handle_access(AccessNet::from_all(WRITTEN_FOR))?
        .scope(Scope::from_all(WRITTEN_FOR))?
        .create()?
        .add_rules(path_beneath_rules(
            readable
                .iter()
                .map(PathBuf::as_path)
                .chain(SYSTEM.iter().map(Path::new)),
            AccessFs::from_read(WRITTEN_FOR),
        ))?
        .add_rules(path_beneath_rules(
            DEVICES,
            AccessFs::ReadFile | AccessFs::WriteFile,
        ))?
        .add_rules(path_beneath_rules(
            writable,
            AccessFs::from_all(WRITTEN_FOR) & !AccessFs::MakeSock & !AccessFs::IoctlDev,
        ))?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi as u8,
        _ => 0,
    })
}

/// Calls that are refused with "operation not permitted", whatever their arguments: sockets,
/// namespaces and mounts, other processes, the kernel's own affairs, metadata of files (which
/// Landlock leaves alone), leaving the process group, and memory that outlives its process.
const DENIED: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_kcmp,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_memfd_create,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utimensat,
    // `fchmodat2`, which some versions of the libc crate do not name.
    452,
];

/// Older forms of the same calls.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_mknod,
    libc::SYS_inotify_init,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A rule for one argument.
fn argument(
    index: u8,
    length: Len,
    operator: Op,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, length, operator, value)?])
}

/// System calls that are refused: [`DENIED`], and by their arguments new namespaces, limits of
/// other processes and owners of signals; without a process space of its own (`own_processes`)
/// also signals to anyone else, and with `one_process` every new process.
pub(super) fn restrict_system_calls(
    own_processes: bool,
    one_process: bool,
) -> Result<(), seccompiler::Error> {
    let mut rules: Rules = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let clone_flags = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_PARENT,
    ];
    let mut clones = clone_flags
        .iter()
        .map(|flag| {
            let flag = *flag as u64;
            argument(0, Len::Qword, Op::MaskedEq(flag), flag)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if one_process {
        let thread = libc::CLONE_THREAD as u64;
        clones.push(argument(0, Len::Qword, Op::MaskedEq(thread), 0)?);
        #[cfg(target_arch = "x86_64")]
        for call in [libc::SYS_fork, libc::SYS_vfork] {
            rules.insert(call, Vec::new());
        }
    }
    rules.insert(libc::SYS_clone, clones);
    rules.insert(
        libc::SYS_prlimit64,
        vec![argument(0, Len::Dword, Op::Ne, 0)?],
    );
    let owners = [libc::F_SETOWN, 15, 10]
        .iter()
        .map(|command| argument(1, Len::Dword, Op::Eq, *command as u64))
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_fcntl, owners);
    if !own_processes {
        let own = getpid().as_raw() as u64;
        for call in [libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill] {
            rules.insert(call, vec![argument(0, Len::Dword, Op::Ne, own)?]);
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        // The same calls by the numbers of the x32 interface.
        let twins: Vec<(i64, Vec<SeccompRule>)> = rules
            .iter()
            .map(|(call, rule)| (call | 0x4000_0000, rule.clone()))
            .collect();
        rules.extend(twins);
    }
    apply(rules, libc::EPERM)?;
    // Its arguments lie in memory, where a filter cannot look; C libraries fall back to `clone`.
    apply(Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn apply(rules: Rules, errno: i32) -> Result<(), seccompiler::Error> {
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

/// Becomes a user that owns nothing, where one is given, and keeps no capability.
pub(super) fn give_up_rights(user: Option<u32>) -> Result<(), String> {
    let failed = |what: &str, why: &dyn std::fmt::Display| format!("{what}: {why}");
    if let Some(user) = user {
        setgroups(&[]).map_err(|e| failed("setgroups", &e))?;
        setgid(Gid::from_raw(user)).map_err(|e| failed("setgid", &e))?;
        setuid(Uid::from_raw(user)).map_err(|e| failed("setuid", &e))?;
    }
    use caps::CapSet::{Effective, Inheritable, Permitted};
    for set in [Effective, Permitted, Inheritable] {
        caps::clear(None, set).map_err(|e| failed("capabilities", &e))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(|e| failed("no new privileges", &e))
}

/// Limits that each process has for itself; the sums are the supervisor's.
pub(super) fn limit_amounts(limits: &Limits, processes: Option<u64>) -> nix::Result<()> {
    let set = |resource, soft: u64, hard: u64| {
        // A limit that is lower already stays.
        let (_, most) = getrlimit(resource)?;
        setrlimit(resource, soft.min(most), hard.min(most))
    };
    set(Resource::RLIMIT_CORE, 0, 0)?;
    // The kernel sends a signal at the first and kills at the second.
    set(
        Resource::RLIMIT_CPU,
        limits.cpu_seconds,
        limits.cpu_seconds + 1,
    )?;
    set(Resource::RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes)?;
    set(Resource::RLIMIT_NOFILE, 64, 64)?;
    set(Resource::RLIMIT_MEMLOCK, 0, 0)?;
    set(Resource::RLIMIT_MSGQUEUE, 0, 0)?;
    if let Some(processes) = processes {
        set(Resource::RLIMIT_NPROC, processes, processes)?;
    }
    set(Resource::RLIMIT_AS, limits.memory, limits.memory)
}

/// Threads of a user, of all programs.
pub(super) fn threads_of(user: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    super::processes::all()
        .filter(|pid| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == user))
        .map(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/task")).map_or(1, |tasks| tasks.count() as u64)
        })
        .sum()
}
