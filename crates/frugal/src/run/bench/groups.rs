//! Which runs of a suite are compared by what they cost.

use frugal_eval::suite::{Group, Job, Suite, Work};

use super::BenchError;

/// The suite's groups with what their runs do: the measures of different commands have different
/// units.
pub(super) fn groups(suite: &Suite, jobs: &[Job]) -> Result<Vec<(Group, Work)>, BenchError> {
    let mut groups = suite.groups.clone();
    if groups.is_empty() {
        let mut runs: Vec<String> = Vec::new();
        for job in jobs {
            if !runs.contains(&job.name) {
                runs.push(job.name.clone());
            }
        }
        groups.push(Group {
            name: "Runs".into(),
            runs,
            baseline: None,
        });
    }
    let with_work = |group: Group| {
        let mut works: Vec<Work> = jobs
            .iter()
            .filter(|job| group.runs.contains(&job.name))
            .map(|job| job.work)
            .collect();
        works.sort();
        works.dedup();
        match works[..] {
            [work] => Ok((group, work)),
            _ => Err(BenchError::MixedGroup { group: group.name }),
        }
    };
    groups.into_iter().map(with_work).collect()
}
