//! Groups of runs by the six measures of what they cost.

use frugal_eval::efficiency::{System, scaled};
use frugal_eval::report::{EfficiencyReport, SystemGroup};
use frugal_eval::suite::{Group, Job, Work};
use serde_json::{Value, json};

use super::groups::groups;
use super::queue::Queue;
use super::request::BenchRequest;
use super::{BenchError, output};

/// What a comparison of costs came to.
#[derive(Clone, Debug)]
pub struct EfficiencyResults {
    /// Whether it was stopped before the last run.
    pub stopped: bool,
    /// The groups, with the measures of all runs that there are.
    pub groups: Vec<SystemGroup>,
}

impl EfficiencyResults {
    /// Whether a run failed.
    pub fn has_failures(&self) -> bool {
        let mut systems = self.groups.iter().flat_map(|group| &group.systems);
        systems.any(|system| !system.errors.is_empty())
    }

    /// The groups as the results keep them.
    pub fn to_json(&self) -> Vec<Value> {
        let entry = |g: &SystemGroup| {
            json!({
                "name": g.name, "command": g.work.name(), "baseline": g.baseline,
                "systems": g.systems, "scaled": scaled(&g.systems),
            })
        };
        self.groups.iter().map(entry).collect()
    }
}

/// Does the runs of a suite, sampled, and compares what they cost.
///
/// # Errors
/// As [`BenchRequest::plan`] and [`Queue::run_all`], groups of runs that cannot be compared, and
/// files that cannot be written.
pub fn efficiency(
    request: &BenchRequest,
    queue: &mut Queue<'_>,
) -> Result<EfficiencyResults, BenchError> {
    let suite = &request.suite;
    let all = request.all_jobs();
    let groups = groups(suite, &all)?;
    let runs = request.plan()?;
    let _lock = request.claim(&runs)?;
    let stopped = queue.run_all(&runs, &request.out, true)?;
    // Whatever part of the suite this call was for, the comparison is of all that is there.
    let groups = groups
        .into_iter()
        .map(|(group, work)| measured(request, &all, group, work))
        .collect();
    let results = EfficiencyResults { stopped, groups };
    let report = EfficiencyReport {
        title: &request.title,
        subtitle: &suite.description,
        groups: &results.groups,
    };
    output::write(
        request,
        &report.to_html(),
        &report.to_markdown(),
        &json!({ "description": suite.description, "groups": results.to_json() }),
    )?;
    Ok(results)
}

/// A group with the measures of its runs that there are.
fn measured(request: &BenchRequest, all: &[Job], group: Group, work: Work) -> SystemGroup {
    let system = |name: &String| {
        let same = all.iter().filter(|job| job.name == *name);
        let folders: Vec<_> = same.map(|job| request.folder(job)).collect();
        System::read(name, work, folders.iter().map(|f| f.as_path()))
    };
    let mut systems: Vec<System> = group
        .runs
        .iter()
        .map(system)
        .filter(|s| s.runs > 0 || !s.errors.is_empty())
        .collect();
    let baseline = group.baseline.unwrap_or_else(|| group.runs[0].clone());
    System::compare(&mut systems, &baseline);
    SystemGroup {
        name: group.name,
        work,
        baseline,
        systems,
    }
}
