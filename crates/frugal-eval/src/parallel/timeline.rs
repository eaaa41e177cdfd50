//! A simulated step as lines of text, one for each stage.

use super::simulate::Simulation;

/// Lines of `width` characters: digits are forward passes by the last digit of the micro-batch,
/// letters backward passes, dots are idle.
pub fn timeline(simulation: &Simulation, width: usize) -> Vec<String> {
    let stages = simulation.busy.len();
    let mut lines = vec![vec!['.'; width]; stages];
    let scale = width as f64 / simulation.seconds.max(f64::MIN_POSITIVE);
    for event in &simulation.events {
        let number = (event.pass.micro_batch % 10) as u8;
        let mark = if event.pass.backward {
            char::from(b'a' + number)
        } else {
            char::from(b'0' + number)
        };
        // A cell belongs to the pass in which its middle lies.
        let start = (event.start * scale - 0.5).ceil().max(0.0) as usize;
        let end = ((event.end * scale - 0.5).ceil().max(0.0) as usize).min(width);
        if let Some(line) = lines.get_mut(event.stage as usize) {
            for cell in line.iter_mut().take(end).skip(start) {
                *cell = mark;
            }
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

#[cfg(test)]
mod tests {
    use super::super::plan::{ParallelPlan, Schedule};
    use super::super::simulate::{PassTimes, simulate};
    use super::*;

    /// Drawn by hand: two stages, three micro-batches, passes of one second.
    #[test]
    fn schedules_are_drawn_as_on_paper() {
        let lines = |schedule| {
            let plan = ParallelPlan {
                pipeline: 2,
                micro_batches: 3,
                schedule,
                ..ParallelPlan::default()
            };
            let times = PassTimes::equal(&plan, 1.0, 1.0);
            timeline(&simulate(&plan, &times).unwrap(), 8)
        };
        assert_eq!(lines(Schedule::OneFOneB), ["01.a2b.c", ".0a1b2c."]);
        assert_eq!(lines(Schedule::GPipe), ["012..abc", ".012abc."]);
    }
}
