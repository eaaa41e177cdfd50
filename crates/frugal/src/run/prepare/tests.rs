//! Files that stand for parts, and what is held out.

use super::*;

#[test]
fn given_files_replace_the_parts_of_the_built_in_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dev.tsv");
    std::fs::write(
        &file,
        "label\ttext\nham\tsee you soon\nspam\twin a prize now\n",
    )
    .unwrap();
    let own = DataConfig {
        train: "sms-spam".into(),
        max_eval_rows: 50,
        ..DataConfig::default()
    };
    let given = DataConfig {
        validation: Some(file.display().to_string()),
        ..own.clone()
    };
    let rows = |config: &DataConfig| {
        let (_, validation, test) =
            datasets(config, ProblemType::SingleLabel, 0, &Lookup::default()).unwrap();
        (validation.unwrap().len(), test.unwrap().len())
    };
    assert_eq!((rows(&own), rows(&given)), ((50, 50), (2, 50)));
    let missing = DataConfig {
        test: Some("nowhere.tsv".into()),
        ..own
    };
    assert!(
        datasets(&missing, ProblemType::SingleLabel, 0, &Lookup::default())
            .unwrap_err()
            .to_string()
            .contains("nowhere.tsv")
    );
}

#[test]
fn a_test_part_is_held_out_by_the_seed_of_the_split_and_not_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.tsv");
    let row = |i: usize| format!("{}\tmessage number {i}\n", ["ham", "spam"][i % 2]);
    let rows: String = (0..100).map(row).collect();
    std::fs::write(&file, format!("label\ttext\n{rows}")).unwrap();
    let config = DataConfig {
        train: file.display().to_string(),
        test_share: 0.2,
        max_train_rows: 50,
        split_seed: Some(7),
        ..DataConfig::default()
    };
    let texts = |d: &Dataset| -> std::collections::BTreeSet<String> {
        d.examples.iter().map(|e| format!("{e:?}")).collect()
    };
    let parts = |config: &DataConfig, seed: u64| {
        let (train, validation, test) =
            datasets(config, ProblemType::SingleLabel, seed, &Lookup::default()).unwrap();
        (train, validation.unwrap(), test.unwrap())
    };
    let (train, validation, test) = parts(&config, 0);
    // The test comes from the whole file, validation from the rows that are trained on.
    // Of each class 25 rows, a tenth of which, rounded down, is held out.
    assert_eq!((train.len(), validation.len(), test.len()), (46, 4, 20));
    for other in [&train, &validation] {
        assert!(texts(other).is_disjoint(&texts(&test)));
    }
    let again = parts(&config, 1);
    assert_eq!(texts(&again.2), texts(&test));
    assert_eq!(texts(&again.1), texts(&validation));
    let free = DataConfig {
        split_seed: None,
        ..config.clone()
    };
    assert_ne!(texts(&parts(&free, 0).2), texts(&parts(&free, 1).2));
    let builtin = DataConfig {
        train: "sms-spam".into(),
        ..config
    };
    let error = datasets(&builtin, ProblemType::SingleLabel, 0, &Lookup::default()).unwrap_err();
    assert!(error.to_string().contains("`data.test_share`"), "{error}");
}

#[test]
fn too_few_rows_to_hold_any_out_are_told_with_the_file_and_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.tsv").display().to_string();
    std::fs::write(&file, "label\ttext\nham\tsee you soon\n").unwrap();
    let config = DataConfig {
        train: file.clone(),
        ..DataConfig::default()
    };
    let error = datasets(&config, ProblemType::SingleLabel, 0, &Lookup::default())
        .unwrap_err()
        .to_string();
    let said = format!(
        "{file}: too few rows (1) to hold out a share of 0.1 for validation: give a validation file with `--eval-data`"
    );
    assert!(error.starts_with(&said), "{error}");
    // What it advises helps.
    assert!(
        datasets(
            &DataConfig {
                validation: Some(file),
                ..config.clone()
            },
            ProblemType::SingleLabel,
            0,
            &Lookup::default()
        )
        .is_ok()
    );
    assert!(
        datasets(
            &DataConfig {
                validation_share: 0.0,
                ..config
            },
            ProblemType::SingleLabel,
            0,
            &Lookup::default()
        )
        .is_ok()
    );
}

#[test]
fn data_without_labels_are_pointed_to_the_other_task() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chat.jsonl");
    let turns = r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}"#;
    std::fs::write(&file, format!("{turns}\n").repeat(20)).unwrap();
    let data = DataConfig {
        train: file.display().to_string(),
        ..DataConfig::default()
    };
    let error = prepare(
        &TuneConfig {
            data,
            ..TuneConfig::default()
        },
        &Lookup::default(),
    )
    .err()
    .unwrap()
    .to_string();
    assert!(
        error.contains("chat.jsonl")
            && error.contains("found: none")
            && error.contains("`--task causal-lm`"),
        "{error}"
    );
}
