//! The memory of this process as the system counts it.

/// Most resident memory this process has had, in bytes; `None` where the system does not say (only
/// Linux is read).
pub fn peak_rss_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// Resident memory of this process now, in bytes; `None` where the system does not say (only Linux
/// is read).
pub fn current_rss_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

fn status_field(name: &str) -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

fn parse(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_kibibytes() {
        let status = "Name:\tfrugal\nVmHWM:\t  123456 kB\nVmRSS:\t      12 kB\n";
        assert_eq!(
            (
                parse(status, "VmHWM:"),
                parse(status, "VmRSS:"),
                parse(status, "VmSwap:")
            ),
            (Some(126_418_944), Some(12_288), None)
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_memory_is_seen() {
        let before = current_rss_bytes().unwrap();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let peak = peak_rss_bytes().unwrap();
        assert!(
            peak >= before && peak >= block.len() as u64,
            "peak {peak}, before {before}"
        );
    }
}
