//! What a method promises by being registered, and by its capabilities.

use burn::tensor::{Tensor, TensorData};
use frugal::adapt::{
    ActiveAdapters, Adapter, AdapterSet, BuildContext, Fixed, Head, LoadedAdapter, Method, Mode,
    merge, peft, to_vec,
};
use frugal::model::{Backbone, Frozen, Input, SequenceLayout, StateOptions};
use serde_json::{Map, json};

use crate::MODELS;
use crate::case::{Case, IDS, LENGTHS, hidden, hidden_in};
use crate::support::{context, device};
use crate::tensors::{Checked, Named, close, parameters, same_bits, worst};

/// All checks of a method on a model.
pub fn all(method: &'static Method, model: &str) -> Checked {
    checks(method, model).map_err(|reason| format!("{} on {model}: {reason}", method.name))
}

fn checks(method: &'static Method, model: &str) -> Checked {
    let mut case = match Case::new(method, model, 1)? {
        Ok(case) => case,
        Err(reason) => {
            let others = MODELS.iter().filter(|other| **other != model);
            let works = |other: &str| Ok::<_, String>(Case::new(method, other, 1)?.is_ok());
            let found = others
                .map(|other| works(other))
                .collect::<Result<Vec<bool>, _>>()?;
            println!("skipped: {} acts on nothing there, {reason}", method.name);
            return ensure(found.contains(&true), "it acts on none of the models");
        }
    };
    names(&case)?;
    unknown_setting(&case)?;
    identity(&case)?;
    plan_counts_the_same(&case)?;
    let (base, before) = (base_bits(&case), parameters(case.adapter.as_ref()));
    let mut head = case.head(1);
    let losses = case.train(&mut head, 0)?;
    learns(&case, &losses, &base, &before)?;
    merges(&case)?;
    norm_of_a_sum(&case)?;
    if model != "bert" && method.capabilities.causal {
        one_token_at_a_time(&case)?;
    }
    let trained = (parameters(case.adapter.as_ref()), state(&case));
    let case = mixed_batches(case)?;
    files(case, head)?;
    resumes(method, model, &trained)?;
    one_seed_one_result(method, model, &trained.0)
}

fn ensure(holds: bool, otherwise: impl Into<String>) -> Checked {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn names(case: &Case) -> Checked {
    let (method, adapter) = (case.method, &case.adapter);
    ensure(
        adapter.method() == method.name,
        format!("the adapter calls itself `{}`", adapter.method()),
    )?;
    ensure(
        adapter.supports_mixed_batch() == method.capabilities.mixed_batch,
        "adapter and registry differ about mixed batches",
    )
}

fn unknown_setting(case: &Case) -> Checked {
    let settings = Map::from_iter([("lora_alhpa".to_owned(), json!(1))]);
    let built = (case.method.build)(&settings, &context(case.backbone.as_ref(), 0));
    let error = built.err().map(|e| e.to_string()).unwrap_or_default();
    ensure(
        error.contains("unknown setting `lora_alhpa`") && error.contains(case.method.name),
        format!("an unknown setting is answered with `{error}`"),
    )
}

/// Nothing changes before training where that is promised, and something does elsewhere.
fn identity(case: &Case) -> Checked {
    let base = hidden(case.backbone.as_ref(), None)?;
    let adapted = case.hidden()?;
    if case.method.capabilities.identity_at_init {
        // Factors that give a weight back give it back rounded, and recurrences add that up.
        return close("hidden states before training", &adapted, &base, 2e-5);
    }
    let (_, difference) = worst(&adapted, &base);
    // LoRA-XS starts from a deviation of 1e-5; three times what counts as no change is a change.
    let least = if case.method.name == "lora-xs" {
        3e-5
    } else {
        1e-4
    };
    ensure(
        difference > least,
        format!("it promises less than it does: hidden states differ by {difference:e} only"),
    )
}

/// Planning without a model counts the same parameters.
fn plan_counts_the_same(case: &Case) -> Checked {
    let context = BuildContext {
        backbone: None,
        ..context(case.backbone.as_ref(), 1)
    };
    let planned =
        (case.method.build)(&case.settings, &context).map_err(|e| format!("planning: {e}"))?;
    let shapes = |a: &dyn Adapter| {
        let parameters = a.parameters();
        let shape = parameters
            .iter()
            .map(|p| (p.name().to_owned(), p.len(), p.is_trainable()));
        shape.collect::<Vec<_>>()
    };
    let (planned, made) = (shapes(planned.as_ref()), shapes(case.adapter.as_ref()));
    // Which outputs form a group follows from the weights; all groups together have as many.
    let total = |all: &[(String, usize, bool)]| all.iter().map(|p| p.1).sum::<usize>();
    ensure(
        planned == made || (case.method.name == "adamss" && total(&planned) == total(&made)),
        format!("planned are {planned:?}, made are {made:?}"),
    )
}

fn base_bits(case: &Case) -> Vec<u32> {
    let mut all = Vec::new();
    let mut add = |values: Vec<f32>| all.extend(values.iter().map(|v| v.to_bits()));
    case.backbone.visit_weights(&mut |part| match part {
        Frozen::Linear(l) => {
            add(to_vec(l.weight.dense()));
            l.bias.iter().for_each(|b| add(to_vec(b.clone())));
        }
        Frozen::Embedding(e) => add(to_vec(e.weight.dense())),
        Frozen::Norm(n) => {
            add(to_vec(n.weight.clone()));
            n.bias.iter().for_each(|b| add(to_vec(b.clone())));
        }
        Frozen::Conv(c) => {
            add(to_vec(c.weight.clone()));
            c.bias.iter().for_each(|b| add(to_vec(b.clone())));
        }
        Frozen::Param(p) => add(to_vec(p.value.clone())),
    });
    all
}

/// Training learns, reaches every parameter and leaves the base alone.
fn learns(case: &Case, losses: &[f64], base: &[u32], before: &[Named]) -> Checked {
    // Where training samples, one step says little: the last epoch does.
    let steps = if case.method.name == "pvera" { 3 } else { 1 };
    let last: f64 = losses.iter().rev().take(steps).sum::<f64>() / steps as f64;
    ensure(
        losses.first().is_some_and(|first| last < 0.9 * first),
        format!("the loss does not fall by a tenth: {losses:?}"),
    )?;
    ensure(
        base == base_bits(case),
        "training changed the frozen weights",
    )?;
    for ((name, old), parameter) in before.iter().zip(case.adapter.parameters()) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let moved = bits(&parameter.to_vec()) != bits(old);
        // Positions and segments that no example has, and keys' biases under softmax, get no
        // gradient by nature.
        // AdaLoRA may leave a layer no rank.
        let unranked = name.ends_with("lora_E") && parameter.to_vec().iter().all(|v| *v == 0.0);
        let reached = moved || name.contains("position") || name.contains("key.bias") || unranked;
        ensure(
            reached == parameter.is_trainable(),
            if reached {
                format!("training changed `{name}`, which is frozen")
            } else {
                format!("training did not change `{name}`")
            },
        )?;
    }
    Ok(())
}

/// Merged weights, and those kept for following passes, compute the same.
fn merges(case: &Case) -> Checked {
    let backbone = case.backbone.as_ref();
    let adapted = case.hidden()?;
    // Weights that are kept from the first pass for the second.
    let fixed = Fixed::new(Some(case.adapter.as_ref()));
    for pass in ["first", "second"] {
        let what = format!("hidden states with kept weights, {pass} pass");
        close(&what, &hidden_in(backbone, fixed.pass())?, &adapted, 1e-4)?;
    }
    let claimed = case.method.capabilities.merge;
    match merge::weights(backbone, Some(case.adapter.as_ref())) {
        Ok(weights) => {
            ensure(claimed, "it merges, and its registration does not say so")?;
            let merged = weights.build(&device()).map_err(|e| e.to_string())?;
            let found = hidden(merged.as_ref(), None)?;
            close("hidden states of the merged model", &found, &adapted, 1e-4)
        }
        Err(error) => ensure(!claimed, format!("merging: {error}")),
    }
}

fn norm_of_a_sum(case: &Case) -> Checked {
    let d = case.backbone.info().hidden_size;
    let terms = |shift: usize| {
        let values: Vec<f32> = (0..IDS.len() * d)
            .map(|i| ((i + shift) as f32 * 0.37).sin())
            .collect();
        Tensor::<2>::from_data(TensorData::new(values, [IDS.len(), d]), &device())
    };
    let mut norms = Vec::new();
    case.backbone.visit_weights(&mut |part| {
        if let Frozen::Norm(norm) = part {
            norms.push(norm.clone());
        }
    });
    for norm in norms.iter().filter(|norm| norm.weight.dims() == [d]) {
        let mut pass = case.adapter.pass(Mode::Eval);
        let [_, fused] = pass.add_norm(norm, terms(1), terms(2));
        let mut pass = case.adapter.pass(Mode::Eval);
        let expected = pass.norm(norm, frugal_kernels::add(terms(1), terms(2)));
        let what = "`norm` is changed and `norm_change` does not say so: the norm of a sum";
        close(what, &to_vec(fused), &to_vec(expected), 0.0)?;
    }
    Ok(())
}

/// Tokens one at a time give what all at once give.
fn one_token_at_a_time(case: &Case) -> Checked {
    let (ids, backbone) = (&IDS[..6], case.backbone.as_ref());
    let failed = |e: frugal::model::ModelError| format!("forward pass: {e}");
    let mut pass = case.adapter.pass(Mode::Eval);
    let input = Input::new(ids, &[6]);
    let whole = to_vec(
        backbone
            .forward(&input, pass.as_mut(), None)
            .map_err(failed)?,
    );
    let options = StateOptions::default();
    let mut cache = backbone.new_state(1, options).map_err(failed)?;
    let (fixed, mut single) = (Fixed::new(Some(case.adapter.as_ref())), Vec::new());
    for id in ids {
        let layout = SequenceLayout::with_past(&[1], &cache.past());
        let input = Input::tokens(std::slice::from_ref(id), layout);
        let mut pass = fixed.pass();
        let states = backbone.forward(&input, pass.as_mut(), Some(&mut cache));
        single.extend(to_vec(states.map_err(failed)?));
    }
    close("hidden states token by token", &single, &whole, 1e-4)
}

/// A batch with and without the adapter equals separate ones, where that is promised.
fn mixed_batches(mut case: Case) -> Result<Case, String> {
    if !case.method.capabilities.mixed_batch {
        return Ok(case);
    }
    let alone = case.hidden()?;
    let base = hidden(case.backbone.as_ref(), None)?;
    let mut set = AdapterSet::default();
    let entry = LoadedAdapter {
        adapter: case.adapter,
        head: None,
    };
    set.insert("a", entry);
    let layout = SequenceLayout::new(&LENGTHS);
    let choice = ActiveAdapters::PerSequence(vec![Some("a".into()), None]);
    let pass = set.pass(&choice, &layout, Mode::Eval);
    let mixed = hidden_in(case.backbone.as_ref(), pass.map_err(|e| e.to_string())?)?;
    let split = LENGTHS[0] * case.backbone.info().hidden_size;
    let (with, without) = mixed.split_at(split);
    close(
        "hidden states with it in a mixed batch",
        with,
        &alone[..split],
        5e-5,
    )?;
    close(
        "hidden states beside it in a mixed batch",
        without,
        &base[split..],
        1e-5,
    )?;
    case.adapter = set.remove("a").ok_or("the set lost the adapter")?.adapter;
    Ok(case)
}

/// Files keep every bit, of the form that they keep.
fn files(case: Case, head: Head) -> Checked {
    let backbone = case.backbone.as_ref();
    let trained = case.hidden()?;
    // Some methods keep less than they train, with the same effect.
    let adapter = case.adapter.to_inference().unwrap_or(case.adapter);
    let found = hidden(backbone, Some(adapter.as_ref()))?;
    close(
        "hidden states of the form for inference",
        &found,
        &trained,
        1e-5,
    )?;
    ensure(
        adapter.to_inference().is_none(),
        "the form for inference has a form for inference of its own",
    )?;
    let entry = LoadedAdapter {
        adapter,
        head: Some(head),
    };
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let failed = |e: frugal::adapt::AdaptError| format!("files: {e}");
    peft::save(folder.path(), &entry, backbone.info(), "base").map_err(failed)?;
    let (read, report) = peft::load(folder.path(), &context(backbone, 9), false).map_err(failed)?;
    ensure(report.is_exact(), "what was saved is not read exactly")?;
    let (kept, expected) = (
        parameters(read.adapter.as_ref()),
        parameters(entry.adapter.as_ref()),
    );
    same_bits("parameters from files", &kept, &expected)?;
    let (read, expected) = (logits(backbone, &read)?, logits(backbone, &entry)?);
    close("logits from files", &read, &expected, 0.0)
}

fn logits(backbone: &dyn Backbone, entry: &LoadedAdapter) -> Result<Vec<f32>, String> {
    let mut pass = entry.adapter.pass(Mode::Eval);
    let hidden = backbone
        .forward(&Input::new(&IDS, &LENGTHS), pass.as_mut(), None)
        .map_err(|e| format!("forward pass: {e}"))?;
    let layout = SequenceLayout::new(&LENGTHS);
    let head = entry.head.as_ref().ok_or("the head is missing")?;
    let logits = head.forward(hidden, &layout, backbone, pass.as_mut(), Mode::Eval);
    Ok(to_vec::<2>(logits))
}

fn state(case: &Case) -> Vec<Named> {
    let state = case.adapter.state().into_iter();
    state
        .map(|(name, values)| (name, values.to_vec()))
        .collect()
}

fn fresh(method: &'static Method, model: &str, seed: u64) -> Result<(Case, Head), String> {
    let case = Case::new(method, model, seed)??;
    let head = case.head(seed);
    Ok((case, head))
}

/// An interrupted run that is resumed gives the same bits.
fn resumes(
    method: &'static Method,
    model: &str,
    (trained, kept): &(Vec<Named>, Vec<Named>),
) -> Checked {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut last = None;
    for stop in [5, 14, u64::MAX] {
        let (mut case, mut head) = fresh(method, model, 1)?;
        case.train_until(&mut head, 0, Some(folder.path()), stop)?;
        last = Some(case);
    }
    let case = last.ok_or("nothing was resumed")?;
    let found = parameters(case.adapter.as_ref());
    same_bits("parameters of a resumed run", &found, trained)?;
    same_bits("state of a resumed run", &state(&case), kept)
}

/// One seed gives one result, and another seed another.
fn one_seed_one_result(method: &'static Method, model: &str, trained: &[Named]) -> Checked {
    let result = |seed: u64, train_seed: u64| {
        let (mut case, mut head) = fresh(method, model, seed)?;
        case.train(&mut head, train_seed)?;
        Ok::<_, String>(parameters(case.adapter.as_ref()))
    };
    let what = "parameters of a second run with the same seed";
    same_bits(what, &result(1, 0)?, trained)?;
    let other = same_bits("another seed", &result(6, 6)?, trained);
    ensure(other.is_err(), "another seed gives the same parameters")
}
