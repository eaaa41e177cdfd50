//! Energy counters of the processors.

use std::path::{Path, PathBuf};

const POWERCAP: &str = "/sys/class/powercap";

/// The energy counters of all processor packages (RAPL). They start over when they are full.
#[derive(Debug)]
pub struct EnergyCounter {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// Microjoules at which it starts over.
    range: f64,
    last: f64,
    used: f64,
}

impl EnergyCounter {
    /// Finds the counters; `None` where there is none, or where one of the packages cannot be read:
    /// the energy of some of them is not that of the machine.
    pub fn open() -> Option<Self> {
        Self::open_in(Path::new(POWERCAP))
    }

    fn open_in(folder: &Path) -> Option<Self> {
        let mut packages = Vec::new();
        let mut zones: Vec<PathBuf> = std::fs::read_dir(folder)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        zones.sort();
        for zone in zones {
            // A package is called `package-N`; its parts (`core`, `dram`) are counted in it, and
            // `psys` is another view of the same energy.
            let name = std::fs::read_to_string(zone.join("name")).unwrap_or_default();
            if !name.starts_with("package-") {
                continue;
            }
            let counter = zone.join("energy_uj");
            packages.push(Package {
                last: number(&counter)?,
                range: number(&zone.join("max_energy_range_uj")).unwrap_or(f64::INFINITY),
                counter,
                used: 0.0,
            });
        }
        (!packages.is_empty()).then_some(Self { packages })
    }

    /// Joules since it was opened, of all packages; `None` once one of them cannot be read.
    pub fn joules(&mut self) -> Option<f64> {
        for package in &mut self.packages {
            let now = number(&package.counter)?;
            let step = now - package.last;
            package.used += if step < 0.0 {
                (step + package.range).max(0.0)
            } else {
                step
            };
            package.last = now;
        }
        let used = self.packages.iter().map(|p| p.used).sum::<f64>() * 1e-6;
        used.is_finite().then_some(used)
    }
}

fn number(path: &Path) -> Option<f64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(folder: &Path, zone: &str, name: &str, energy: &str) {
        let zone = folder.join(zone);
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("name"), name).unwrap();
        std::fs::write(zone.join("energy_uj"), energy).unwrap();
        std::fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
    }

    #[test]
    fn the_energy_is_that_of_all_packages_and_survives_a_full_counter() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert!(EnergyCounter::open_in(folder).is_none());
        zone(folder, "intel-rapl:0", "package-0\n", "1000000\n");
        zone(folder, "intel-rapl:0:0", "core\n", "5\n");
        zone(folder, "intel-rapl:1", "package-1\n", "262143000000\n");
        zone(folder, "intel-rapl:2", "psys\n", "7\n");
        let mut counter = EnergyCounter::open_in(folder).unwrap();
        assert_eq!(counter.joules(), Some(0.0));
        // 3 J in the first package; the second one starts over after 0.32885 J and counts 2 J.
        zone(folder, "intel-rapl:0", "package-0\n", "4000000\n");
        zone(folder, "intel-rapl:1", "package-1\n", "2000000\n");
        zone(folder, "intel-rapl:2", "psys\n", "900000000\n");
        let joules = counter.joules().unwrap();
        assert!((joules - 5.328_85).abs() < 1e-9, "{joules}");
        // Half of a machine's energy is not the machine's.
        std::fs::write(folder.join("intel-rapl:1/energy_uj"), "").unwrap();
        assert_eq!(counter.joules(), None);
        assert!(EnergyCounter::open_in(folder).is_none());
    }
}
