//! Numbers in configurations that no size should be.

use std::time::{Duration, Instant};

use frugal::adapt::{AdaptError, peft, registry};
use frugal::model::load::read_json;
use serde_json::{Value, json};

use crate::changed_adapters::changed;
use crate::support::{context, fixture, model};

/// What no size should be.
fn hostile() -> Vec<Value> {
    let numbers = [
        json!(0),
        json!(-1),
        json!(1_000_000),
        json!(1_000_000_000_000_u64),
        json!(1_u64 << 31),
        json!(1_u64 << 62),
        json!(1e300),
    ];
    let others = [json!("NaN"), json!("many"), Value::Null];
    numbers.into_iter().chain(others).collect()
}

/// Paths of all numbers in a configuration, in its patterns too.
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| numbers(value, &format!("{at}/{}", escape(key)), found)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(i, value)| numbers(value, &format!("{at}/{i}"), found)),
        _ => {}
    }
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[test]
fn no_number_of_a_configuration_aborts_hangs_or_takes_all_memory() {
    let mut tried = 0;
    let mut slowest = Duration::ZERO;
    for entry in std::fs::read_dir(fixture("adapters")).unwrap().flatten() {
        let (folder, name) = (entry.path(), entry.file_name());
        let described = read_json(&folder.join("golden.json")).unwrap();
        let base = described["model"].as_str().unwrap();
        let backbone = model(
            base.strip_prefix("fixtures/models/").unwrap(),
            "config.json",
        );
        let context = context(backbone.as_ref(), 0);
        let config = read_json(&folder.join(peft::CONFIG_FILE)).unwrap();
        let mut places = Vec::new();
        numbers(&config, "", &mut places);
        let out = changed(&folder, &[]);
        for place in &places {
            for value in hostile() {
                let mut config = config.clone();
                *config.pointer_mut(place).unwrap() = value.clone();
                std::fs::write(out.path().join(peft::CONFIG_FILE), config.to_string()).unwrap();
                let start = Instant::now();
                match peft::load(out.path(), &context, false) {
                    // Numbers that only training needs.
                    Ok(_) => {}
                    Err(AdaptError::OtherModel { .. }) => unreachable!("only `made_for` says so"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                let time = start.elapsed();
                assert!(
                    time < Duration::from_secs(5),
                    "{name:?}{place} = {value}: {time:?}"
                );
                slowest = slowest.max(time);
                tried += 1;
            }
        }
    }
    let peak = frugal_core::events::peak_rss_bytes().unwrap_or(0);
    assert!(tried > 3000, "{tried}");
    assert!(peak < 2 << 30, "{peak} bytes, slowest {slowest:?}");
}

#[test]
fn no_size_in_settings_aborts_before_the_plan() {
    let backbone = model("llama", "config.json");
    let planning = frugal::adapt::BuildContext {
        backbone: None,
        ..context(backbone.as_ref(), 0)
    };
    let mut tried = 0;
    for method in registry::METHODS {
        let defaults = (method.defaults)();
        for (key, default) in &defaults {
            if !(default.is_number() || default.is_null()) {
                continue;
            }
            for value in hostile() {
                let settings = [(key.clone(), value)].into_iter().collect();
                if let Ok(adapter) = method.make(&settings, &planning) {
                    let elements: usize = adapter.parameters().iter().map(|p| p.len()).sum();
                    assert!(elements < 1 << 26, "{}: {settings:?}", method.name);
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}
