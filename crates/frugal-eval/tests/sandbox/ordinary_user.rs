//! The same attacks, started by a user without rights.

use std::process::Command;

#[test]
fn every_attack_fails_for_an_ordinary_user_too() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let own = std::fs::metadata("/proc/self").unwrap().uid();
    if own != 0 {
        eprintln!("skipped: these tests run as an ordinary user already");
        return;
    }
    let works = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !works {
        eprintln!("skipped: no `setpriv` to become another user with");
        return;
    }
    // Copies that this user may start.
    let folder = crate::support::open_folder();
    let copy = |from: &str| {
        let to = folder
            .path()
            .join(std::path::Path::new(from).file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let test = copy(std::env::current_exe().unwrap().to_str().unwrap());
    let launcher = copy(env!("CARGO_BIN_EXE_frugal-sandbox"));
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    let run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(test)
        .args([
            "attacks::",
            "limits::",
            "programs::",
            "--test-threads=2",
            "--nocapture",
        ])
        .env("HOME", &home)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("FRUGAL_TEST_LAUNCHER", launcher)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}\n{errors}");
    assert!(
        said.contains("test result: ok. ") && errors.contains("the same user"),
        "{said}"
    );
    let count = said.lines().filter(|l| l.ends_with("... ok")).count();
    assert!(count > 20, "{count} {said}");
}
