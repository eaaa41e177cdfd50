//! Reaching what is outside.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use crate::support::*;

#[test]
fn nothing_outside_the_scratch_folder_is_written_deleted_or_changed() {
    let folder = open_folder();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o666)).unwrap();
    let before = std::fs::metadata(&victim).unwrap();
    let program = format!(
        r#"
folder, victim = {:?}, {:?}
for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/root", os.path.dirname(sys.executable), folder):
    try:
        open(place + "/frugal-attack-mark", "w").write("here")
        os.mkdir(place + "/frugal-attack-mark-folder")
    except OSError:
        pass
attempt("write", lambda: open(victim, "w"))
attempt("append", lambda: open(victim, "a"))
attempt("truncate", lambda: os.truncate(victim, 0))
attempt("delete", lambda: os.remove(victim))
attempt("rename", lambda: os.rename(victim, folder + "/other"))
attempt("move here", lambda: os.rename(victim, "victim"))
attempt("link here", lambda: os.link(victim, "victim"))
attempt("chmod", lambda: os.chmod(victim, 0o777))
attempt("chmod folder", lambda: os.chmod(folder, 0o700))
attempt("utime", lambda: os.utime(victim, (1, 1)))
attempt("xattr", lambda: os.setxattr(victim, "user.mark", b"1"))
attempt("folder", lambda: os.mkdir(folder + "/new"))
attempt("symlink", lambda: os.symlink("/etc", folder + "/link"))
os.symlink(victim, "link")
attempt("through a link", lambda: open("link", "w"))
attempt("fifo", lambda: os.mkfifo(folder + "/fifo"))
"#,
        folder.path(),
        victim
    );
    for (name, sandbox) in kinds() {
        if !has_landlock(&sandbox, 3, "truncation") {
            continue;
        }
        let run = attack(&sandbox, &program, &short());
        all_refused(name, &run, 15);
        let after = std::fs::metadata(&victim).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(
            (after.mode(), after.mtime()),
            (before.mode(), before.mtime())
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        for place in ["/tmp", "/var/tmp", "/dev/shm", "/run", "/root"] {
            let mark = Path::new(place).join("frugal-attack-mark");
            assert!(!mark.exists(), "{name}: {}", mark.display());
        }
    }
}

#[test]
fn the_scratch_folder_is_there_and_gone_afterwards() {
    for (name, sandbox) in kinds() {
        let run = attack(
            &sandbox,
            "open('mine', 'w').write('text')\nprint(open('mine').read(), os.getcwd())\nimport tempfile\nprint(tempfile.TemporaryFile().fileno() > 2, sorted(os.environ))",
            &short(),
        );
        let (said, folder) = run.stdout.lines().next().unwrap().split_once(' ').unwrap();
        assert_eq!(said, "text", "{name}: {run:?}");
        assert!(!Path::new(folder).exists(), "{name}: {folder}");
        assert!(
            run.stdout.contains("True [") && !run.stdout.contains("FRUGAL"),
            "{run:?}"
        );
        assert!(!run.stdout.contains("CARGO"), "{name}: {run:?}");
    }
}

#[test]
fn no_file_but_the_interpreters_is_read() {
    let folder = open_folder();
    let secret = folder.path().join("id_rsa");
    std::fs::write(&secret, "PRIVATE KEY").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let program = format!(
        r#"
secret, test, me = {secret:?}, {:?}, {}
import pathlib
os.symlink(secret, "link")
for path in (secret, "link", "/etc/passwd", "/etc/shadow", "/etc/hostname", test, "/proc/1/environ",
             "/proc/self/root" + secret, "/proc/self/cwd/link", f"/proc/{{me}}/cmdline", "/proc/self/environ",
             "/dev/mem", "/dev/kmsg", "/proc/self/fd/0/../../root" + secret):
    attempt(path, lambda: open(path, "rb").read(10))
for path in ("/", "/etc", "/home", "/root", os.path.dirname(secret), "/proc", "/proc/self/root"):
    attempt(path, lambda: os.listdir(path))
"#,
        std::env::current_exe().unwrap(),
        std::process::id(),
    );
    for (name, sandbox) in kinds() {
        all_refused(name, &attack(&sandbox, &program, &short()), 21);
    }
}

#[test]
fn other_processes_are_neither_seen_nor_signalled() {
    let mut bystander = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let program = format!(
        r#"
import signal
others = ({}, {})
for other in others:
    attempt("signal", lambda: os.kill(other, 9))
    attempt("trace", lambda: call(101, 16, other, 0, 0) if sys.maxsize else None)
    attempt("limits", lambda: __import__("resource").prlimit(other, 0, (1, 1)))
    attempt("memory", lambda: open(f"/proc/{{other}}/mem", "rb"))
attempt("parent", lambda: os.kill(os.getppid(), 9))
attempt("parent's pipe", lambda: open(f"/proc/{{os.getppid()}}/fd/1", "wb"))
attempt("session", lambda: os.setsid())
attempt("group", lambda: os.setpgid(0, os.getppid()))
print(sorted(int(d) for d in os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else "no", file=sys.stderr)
"#,
        bystander.id(),
        std::process::id()
    );
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, &program, &short());
        let own_parent = sandbox.isolation().own_processes;
        let lines: Vec<&str> = run.stdout.lines().collect();
        assert_eq!(lines.len(), 12, "{name}: {run:?}");
        for line in &lines {
            // The first process of a space takes no signal from within it.
            let harmless = own_parent && line.starts_with("parent DONE");
            assert!(harmless || line.contains(" refused "), "{name}: {line}");
        }
        assert!(bystander.try_wait().unwrap().is_none(), "{name}");
        let all = attack(
            &sandbox,
            "attempt('all', lambda: os.kill(-1, 9))\nattempt('group', lambda: os.killpg(0, 0))",
            &short(),
        );
        assert!(bystander.try_wait().unwrap().is_none(), "{name}: {all:?}");
    }
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn no_socket_of_any_kind_is_opened() {
    let folder = open_folder();
    let path = folder.path().join("host.sock");
    let _named = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let name = format!("frugal-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let program = format!(
        r#"
import socket
def unix(path):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
attempt("named", lambda: unix({path:?}))
attempt("abstract", lambda: unix("\0{name}"))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {}), 2))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)))
attempt("pair", lambda: socket.socketpair())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
"#,
        tcp.local_addr().unwrap().port()
    );
    for (name, sandbox) in kinds() {
        all_refused(name, &attack(&sandbox, &program, &short()), 7);
    }
}

/// Numbers of system calls differ between machines; these are of x86-64.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_kernels_own_affairs_are_out_of_reach() {
    let program = r#"
new = dict(user=0x10000000, mount=0x20000, pid=0x20000000, net=0x40000000, ipc=0x8000000, uts=0x4000000)
for kind, flag in new.items():
    attempt("unshare " + kind, lambda: call(272, flag))
    attempt("clone " + kind, lambda: call(56, flag | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.byref((ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)), 64))
attempt("x32 unshare", lambda: call(0x40000000 | 272, 0x10000000))
attempt("x32 socket", lambda: call(0x40000000 | 41, 1, 1, 0))
attempt("mount", lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0))
attempt("umount", lambda: call(166, b"/proc", 2))
attempt("open_tree", lambda: call(428, -100, b"/", 1))
attempt("pivot_root", lambda: call(155, b".", b"."))
attempt("chroot", lambda: os.chroot("."))
attempt("setns", lambda: call(308, 0, 0))
attempt("ptrace", lambda: call(101, 0, 0, 0, 0))
attempt("process_vm_readv", lambda: call(310, os.getppid(), 0, 0, 0, 0, 0))
attempt("pidfd_open", lambda: call(434, os.getppid(), 0))
attempt("keyctl", lambda: call(250, 0, -3, 1))
attempt("add_key", lambda: call(248, b"user", b"frugal", b"x", 1, -3))
attempt("bpf", lambda: call(321, 0, 0, 0))
attempt("io_uring", lambda: call(425, 4, ctypes.byref((ctypes.c_char * 256)())))
attempt("perf", lambda: call(298, 0, 0, -1, -1, 0))
attempt("userfaultfd", lambda: call(323, 0))
attempt("memfd", lambda: os.memfd_create("x"))
attempt("shared memory", lambda: call(29, 0, 4096, 0o1600))
attempt("personality", lambda: call(135, 0x0400000))
attempt("setuid", lambda: os.setuid(0) or os.getuid() == 0 and 1 / 0)
attempt("owner of signals", lambda: __import__("fcntl").fcntl(0, 8, os.getppid()))
attempt("module", lambda: call(175, 0, 0, b""))
attempt("reboot", lambda: call(169, 0xfee1dead, 672274793, 0, 0))
"#;
    for (name, sandbox) in kinds() {
        let run = attack(&sandbox, program, &short());
        // Already user 0 of a space in which that user has no rights.
        let run = frugal_eval::sandbox::Execution {
            stdout: run.stdout.replace("refused ZeroDivisionError", "refused"),
            ..run
        };
        all_refused(name, &run, 37);
    }
}

#[test]
fn a_program_has_no_rights_of_its_user() {
    for (name, sandbox) in kinds() {
        let run = attack(
            &sandbox,
            "attempt('caps', lambda: call(126 if os.uname().machine == 'x86_64' else 91, 0, 0))\nimport ctypes\nlibc.prctl.restype = ctypes.c_int\nprint(libc.prctl(39, 0, 0, 0, 0), os.getgroups() in ([], [0], [os.getgid()], [65534]) or os.getgroups(), libc.prctl(21, 0, 0, 0, 0))",
            &short(),
        );
        // No new privileges, and a filter of system calls.
        assert!(
            run.stdout.contains("\n1 ") && run.stdout.trim_end().ends_with(" 2"),
            "{name}: {run:?}"
        );
    }
}
