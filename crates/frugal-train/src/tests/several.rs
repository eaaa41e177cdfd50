//! Runs of several processes, here threads with real sockets between them, against runs of one.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;
use crate::parallel::{Group, Layout, ParallelReport, Patience, RunIdentity, TcpGroup, listen};

/// What a rank came to.
struct Rank {
    losses: Vec<f64>,
    norms: Vec<f64>,
    evaluations: Vec<(u64, f64)>,
    weights: Vec<f32>,
    report: ParallelReport,
}

fn layout(data: usize, pipeline: usize, micro_batches: usize, zero: u8) -> Layout {
    Layout {
        data,
        pipeline,
        micro_batches,
        zero,
    }
}

/// A run of the model of this fixture on every rank of a layout, rank 0 in this folder.
fn together(
    fixture: &str,
    layout: Layout,
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
) -> Result<Vec<Rank>, String> {
    let world = layout.world();
    let identity = RunIdentity {
        world,
        secret: b"secret".to_vec(),
        config: [1; 32],
    };
    let patience = Patience {
        join: Duration::from_secs(10),
        message: Duration::from_secs(10),
    };
    let (listener, go_on) = (
        listen(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap(),
        AtomicBool::new(false),
    );
    let address = listener.local_addr().unwrap().to_string();
    let train = counting(&[9, 7, 12, 8, 10, 6, 11, 9, 7, 8, 5, 12]);
    let validation = counting(&[10, 8]);
    let work = |rank: usize| -> Result<Rank, String> {
        let met = match rank {
            0 => TcpGroup::host(&listener, &identity, patience, &go_on, || Ok(())),
            _ => TcpGroup::join(&address, rank, &identity, patience, &go_on),
        };
        let mut group = Group::new(met.unwrap(), layout).map_err(|e| e.to_string())?;
        let backbone = backbone(fixture);
        let mut adapter = full(backbone.as_ref());
        let mut events = Vec::new();
        let run = TrainRun {
            backbone: backbone.as_ref(),
            adapter: adapter.as_mut(),
            head: None,
            train: &train,
            validation: Some(&validation),
            config,
            folder: folder.filter(|_| rank == 0),
            resume,
            stop: &go_on,
            observer: &mut |event: &Event| events.push(event.clone()),
        };
        let (_, report) = train_parallel(run, &mut group).map_err(|e| e.to_string())?;
        let of_steps = events.iter().filter_map(|event| match event {
            Event::Step {
                loss, grad_norm, ..
            } => Some((*loss, *grad_norm)),
            _ => None,
        });
        let (losses, norms) = of_steps.unzip();
        let evaluations = events.iter().filter_map(|event| match event {
            Event::Evaluated { step, metrics, .. } => Some((*step, metrics["loss"])),
            _ => None,
        });
        Ok(Rank {
            losses,
            norms,
            evaluations: evaluations.collect(),
            weights: adapter
                .parameters()
                .iter()
                .flat_map(|p| p.to_vec())
                .collect(),
            report,
        })
    };
    std::thread::scope(|scope| {
        let work = &work;
        let ranks: Vec<_> = (0..world)
            .map(|rank| scope.spawn(move || work(rank)))
            .collect();
        let all = ranks.into_iter().map(|rank| rank.join().unwrap());
        all.collect::<Result<Vec<_>, _>>()
    })
}

fn config(accumulation: usize) -> TrainConfig {
    TrainConfig {
        batch_size: 6 / accumulation,
        gradient_accumulation_steps: accumulation,
        max_steps: 6,
        lr: 0.005,
        logging_steps: 1,
        eval_steps: 3,
        save_steps: 3,
        packing: false,
        max_grad_norm: 0.5,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    }
}

/// Losses, norms and evaluations of one process, and its weights.
fn alone(fixture: &str, config: &TrainConfig) -> (Setup<'static>, Vec<f32>) {
    let kept: &'static Arc<dyn Backbone> = Box::leak(Box::new(backbone(fixture)));
    let backbone = kept.as_ref();
    let train = Box::leak(Box::new(counting(&[
        9, 7, 12, 8, 10, 6, 11, 9, 7, 8, 5, 12,
    ])));
    let mut setup = Setup::new(backbone, full(backbone), train, config.clone());
    setup.validation = Some(Box::leak(Box::new(counting(&[10, 8]))));
    setup.run().unwrap();
    let weights = setup.adapter.parameters();
    let weights = weights.iter().flat_map(|p| p.to_vec()).collect();
    (setup, weights)
}

fn close(what: &str, one: &[f64], other: &[f64]) {
    assert_eq!(one.len(), other.len(), "{what}");
    for (step, (a, b)) in one.iter().zip(other).enumerate() {
        let bound = 1e-5 * a.abs().max(1.0);
        assert!((a - b).abs() < bound, "{what}, step {step}: {a} and {b}");
    }
}

fn same_as_alone(fixture: &str, layouts: &[Layout], accumulation: usize) -> Vec<Vec<Rank>> {
    let config = config(accumulation);
    let (one, weights) = alone(fixture, &config);
    let made = layouts.iter().map(|&layout| {
        let what = format!("{fixture} {layout:?}");
        let ranks = together(fixture, layout, &config, None, false).unwrap();
        let first = &ranks[0];
        close(&what, &one.losses(), &first.losses);
        let norms = one.events.iter().filter_map(|event| match event {
            Event::Step { grad_norm, .. } => Some(*grad_norm),
            _ => None,
        });
        let norms: Vec<f64> = norms.collect();
        // The clipping is at work.
        assert!(norms.iter().any(|norm| *norm > config.max_grad_norm));
        for (a, b) in norms.iter().zip(&first.norms) {
            assert!((a - b).abs() < 1e-4 * a, "{what}: norms {a} and {b}");
        }
        let found: Vec<f64> = first.evaluations.iter().map(|e| e.1).collect();
        let expected: Vec<f64> = one.evaluations().iter().map(|e| e.1).collect();
        close(&what, &expected, &found);
        let off = weights.iter().zip(&first.weights);
        let mean = off.map(|(a, b)| (a - b).abs()).sum::<f32>() / weights.len() as f32;
        assert!(mean < 1e-5, "{what}: {mean}");
        for rank in &ranks {
            assert_eq!(rank.weights, first.weights, "{what}: all ranks end alike");
        }
        ranks
    });
    made.collect()
}

#[test]
fn gradients_and_weights_that_are_divided_train_what_one_process_does() {
    let layouts = [0, 1, 2, 3].map(|zero| Layout::data(2, zero));
    let made = same_as_alone("llama", &layouts, 1);
    let weights: Vec<&Vec<f32>> = made.iter().map(|ranks| &ranks[0].weights).collect();
    // One micro-batch: each value is summed in the same order.
    assert!(weights[1] == weights[0] && weights[2] == weights[0]);
    let all = 4 * weights[0].len() as u64;
    let [none, first, second, third] = [0, 1, 2, 3].map(|zero: usize| &made[zero][0].report);
    let sums = |bytes: &[u64]| bytes.iter().sum::<u64>();
    let is_half = |bytes: &[u64], whole: u64| {
        assert_eq!(sums(bytes), whole);
        assert!(
            bytes.iter().all(|b| b.abs_diff(whole / 2) < whole / 10),
            "{bytes:?}"
        );
    };
    assert_eq!(none.parameter_bytes, [all, all]);
    assert_eq!(none.optimizer_bytes, [2 * all, 2 * all]);
    is_half(&first.optimizer_bytes, 2 * all);
    assert_eq!(first.gradient_bytes, [all, all]);
    is_half(&second.optimizer_bytes, 2 * all);
    is_half(&second.gradient_bytes, all);
    assert_eq!(second.parameter_bytes, [all, all]);
    is_half(&third.gradient_bytes, all);
    is_half(&third.parameter_bytes, all);
    // Half of the gradients in place of all, and a quarter to hand them to their owners.
    assert!(second.bytes_sent < first.bytes_sent);
}

#[test]
fn three_processes_and_micro_batches_divide_what_two_do() {
    let layouts = [0, 2, 3].map(|zero| Layout::data(3, zero));
    same_as_alone("llama", &layouts, 2);
    // With one micro-batch stage 2 has the bits of stage 1, also where the ring is longer than two.
    let config = config(1);
    let bits = |zero| together("llama", Layout::data(3, zero), &config, None, false).unwrap();
    assert_eq!(bits(1)[0].weights, bits(2)[0].weights);
}

#[test]
fn stages_of_a_pipeline_train_what_one_process_does() {
    let layouts = [
        layout(1, 2, 1, 0),
        layout(1, 2, 3, 0),
        layout(2, 2, 3, 0),
        layout(2, 2, 1, 1),
    ];
    let made = same_as_alone("llama", &layouts, 1);
    let report = &made[1][0].report;
    let all = 4 * made[1][0].weights.len() as u64;
    assert!(report.parameter_bytes.iter().all(|bytes| *bytes < all));
    assert_eq!(report.optimizer_bytes[0], 2 * report.parameter_bytes[0]);
    // Two micro-batches of a step go through the stages one behind another.
    same_as_alone("llama", &[layout(1, 2, 3, 0)], 2);
}

/// Positions that are learned, biases; norms behind each half of a block, windows in some blocks.
#[test]
fn other_models_are_divided_as_well() {
    for fixture in ["gpt2", "gemma3_text"] {
        same_as_alone(fixture, &[layout(1, 2, 2, 0), Layout::data(2, 3)], 1);
    }
}

#[test]
fn a_checkpoint_of_one_division_is_resumed_by_another() {
    let config = config(1);
    let layouts = [layout(2, 1, 1, 3), layout(1, 2, 2, 0), layout(3, 1, 1, 2)];
    for (i, &first) in layouts.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let short = TrainConfig {
            max_steps: 3,
            lr_scheduler_type: Scheduler::Constant,
            ..config.clone()
        };
        together("llama", first, &short, Some(folder.path()), false).unwrap();
        let second = layouts[(i + 1) % layouts.len()];
        let long = TrainConfig {
            max_steps: 5,
            ..short.clone()
        };
        let resumed = together("llama", second, &long, Some(folder.path()), true).unwrap();
        let (whole, _) = alone("llama", &long);
        close(
            &format!("{first:?} {second:?}"),
            &whole.losses()[3..],
            &resumed[0].losses,
        );
    }
}

#[test]
fn what_cannot_be_divided_is_refused_by_name() {
    let usual = config(1);
    let said = |fixture: &str, layout, config: &TrainConfig| {
        let found = together(fixture, layout, config, None, false);
        found.err().unwrap_or_default()
    };
    let error = said("llama", layout(1, 9, 9, 0), &usual);
    assert!(error.contains("P ≤ layers"), "{error}");
    let error = said("llama", layout(1, 2, 4, 0), &usual);
    assert!(error.contains("N·m | train.batch_size"), "{error}");
    let loro = TrainConfig {
        optim: "loro".into(),
        ..usual.clone()
    };
    let error = said("llama", Layout::data(2, 2), &loro);
    assert!(error.contains("loro"), "{error}");
    let error = said("mamba", Layout::data(2, 3), &usual);
    assert!(error.contains("parameter of no layer"), "{error}");
}
