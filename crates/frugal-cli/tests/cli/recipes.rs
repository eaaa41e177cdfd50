//! The recipes in `recipes/` and the suites in `benchmarks/`.

use std::path::{Path, PathBuf};

use frugal::adapt::registry::METHODS;
use frugal::run::{PretrainConfig, TuneConfig};
use frugal_core::config;
use frugal_eval::suite::{Suite, Work};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_method_has_a_recipe_that_can_be_run() {
    for method in METHODS {
        let path = root().join(format!("recipes/{}.toml", method.name));
        let data = ["data.train=sms-spam".to_owned()];
        let found = config::load_with::<TuneConfig>(
            Some(&path),
            &toml::Table::new(),
            &data,
            TuneConfig::problems,
        );
        let found = found.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (found.method.name.as_str(), found.train.lr > 0.0),
            (method.name, true)
        );
    }
}

#[test]
fn a_recipe_holds_every_setting_that_is_set_by_default() {
    let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64());
    for method in METHODS {
        let text =
            std::fs::read_to_string(root().join(format!("recipes/{}.toml", method.name))).unwrap();
        // The file may break the line anywhere.
        assert!(
            text.replace("\n# ", " ").contains(&format!(
                "`frugal methods show {}` explains all",
                method.name
            )),
            "{}",
            method.name
        );
        let given =
            serde_json::to_value(&toml::from_str::<toml::Table>(&text).unwrap()["method"]).unwrap();
        let is_set = |value: &Value| !value.is_null() && *value != json!({});
        for (name, default) in (method.defaults)()
            .into_iter()
            .filter(|(_, value)| is_set(value))
        {
            // They train tokens, and fuse adapters, of the user's choice.
            let chosen = ["token_indices", "adapters"].contains(&name.as_str());
            assert!(
                chosen || same(&given[&name], &default),
                "{}: `{name}` is {}, by default {default}",
                method.name,
                given[&name]
            );
        }
    }
}

#[test]
fn every_suite_is_made_of_runs_that_can_be_run() {
    let mut suites = Vec::new();
    for folder in std::fs::read_dir(root().join("benchmarks"))
        .unwrap()
        .flatten()
    {
        for file in std::fs::read_dir(folder.path())
            .into_iter()
            .flatten()
            .flatten()
            .map(|f| f.path())
        {
            if file.extension().is_some_and(|e| e == "toml")
                && std::fs::read_to_string(&file)
                    .unwrap()
                    .contains("description")
            {
                suites.push(file);
            }
        }
    }
    assert!(suites.len() >= 2, "{suites:?}");
    for file in suites {
        for job in Suite::read(&file).unwrap().jobs(Path::new("nowhere")) {
            let mut settings = job.settings.clone();
            let found = match job.work {
                Work::Tune => {
                    config::load_with::<TuneConfig>(None, &settings, &[], TuneConfig::problems)
                        .map(|_| ())
                }
                Work::Pretrain => {
                    settings.insert("out".into(), "runs".into());
                    config::load_with::<PretrainConfig>(
                        None,
                        &settings,
                        &[],
                        PretrainConfig::problems,
                    )
                    .map(|_| ())
                }
                Work::Eval => Ok(()),
            };
            found.unwrap_or_else(|e| panic!("{}: {}: {e}", file.display(), job.name));
        }
    }
}

#[test]
fn every_method_takes_part_in_the_comparison_on_an_encoder() {
    let suite = Suite::read(&root().join("benchmarks/suites/text-encoder.toml")).unwrap();
    let jobs = suite.jobs(Path::new("nowhere"));
    for method in METHODS {
        // They train tokens, and fuse adapters, of the user's choice; one is for decoders only.
        let apart = matches!(method.name, "trainable-tokens" | "adapter-fusion" | "alora");
        let there = jobs
            .iter()
            .any(|job| job.settings["method"]["name"].as_str() == Some(method.name));
        assert!(there != apart, "{}", method.name);
    }
}

#[test]
fn a_recipe_for_a_model_is_a_run_that_was_made() {
    let made = Suite::read(&root().join("benchmarks/rates/decoder.toml"))
        .unwrap()
        .jobs(Path::new("nowhere"));
    let recipes: Vec<PathBuf> = std::fs::read_dir(root().join("recipes/smollm2-135m"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!recipes.is_empty());
    for path in recipes {
        let data = ["data.train=train.tsv".to_owned()];
        let found = config::load_with::<TuneConfig>(
            Some(&path),
            &toml::Table::new(),
            &data,
            TuneConfig::problems,
        )
        .unwrap();
        let run = |job: &frugal_eval::suite::Job| {
            let run =
                config::load_with::<TuneConfig>(None, &job.settings, &[], TuneConfig::problems)
                    .unwrap();
            (run.model, run.method.name, run.method.settings, run.train)
        };
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            found.method.name == name && path.parent().unwrap().ends_with(&found.model),
            "{}",
            path.display()
        );
        let wanted = (
            found.model,
            found.method.name,
            found.method.settings,
            found.train,
        );
        assert!(
            made.iter().any(|job| run(job) == wanted),
            "{}",
            path.display()
        );
    }
}
