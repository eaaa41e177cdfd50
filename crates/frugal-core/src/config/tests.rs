use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Run {
    model: String,
    seed: u64,
    train: Train,
    adapter: Adapter,
    metadata: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Train {
    lr: f64,
    decay: f32,
    steps: usize,
    schedule: Schedule,
    layers: Vec<u32>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            lr: 2e-4,
            decay: 0.1,
            steps: 100,
            schedule: Schedule::Cosine,
            layers: vec![0, 1],
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Schedule {
    Constant,
    Cosine,
    WarmupStableDecay,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
enum Adapter {
    Lora {
        #[serde(default)]
        r: u32,
        #[serde(default)]
        alpha: f64,
        #[serde(default)]
        targets: Vec<String>,
    },
    Prompt {
        tokens: u32,
    },
}

impl Default for Adapter {
    fn default() -> Self {
        Self::Lora {
            r: 8,
            alpha: 16.0,
            targets: vec!["q_proj".into()],
        }
    }
}

fn strings(overrides: &[&str]) -> Vec<String> {
    overrides.iter().map(|s| (*s).to_owned()).collect()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// The messages for a file and overrides, with the folder cut off.
fn mistakes(text: &str, overrides: &[&str]) -> Vec<String> {
    let (dir, path) = file(text);
    let prefix = format!("{}/", dir.path().display());
    let errors = load::<Run>(Some(&path), &strings(overrides)).unwrap_err();
    errors
        .to_string()
        .lines()
        .map(|line| line.replace(&prefix, ""))
        .collect()
}

#[test]
fn later_layers_win_and_bare_words_are_strings() {
    let (_dir, path) = file("model = \"a\"\nseed = 1\n[train]\nlr = 1\nsteps = 7\n");
    let flags: toml::Table = toml::from_str("seed = 2\n[train]\nsteps = 8").unwrap();
    let overrides = strings(&[
        "model=org/name",
        "train.steps=9",
        "train.steps=10",
        "train.layers=[3, 4]",
        "metadata=12",
    ]);
    let run: Run = load_with(Some(&path), &flags, &overrides, |_| Vec::new()).unwrap();
    assert_eq!(
        (run.model.as_str(), run.seed, run.train.lr, run.train.steps),
        ("org/name", 2, 1.0, 10)
    );
    assert_eq!(run.train.layers, [3, 4]);
    assert_eq!(
        run.metadata.as_deref(),
        Some("12"),
        "a number where a string is wanted is the string as typed"
    );
    assert_eq!(
        run.train.schedule,
        Schedule::Cosine,
        "absent keys keep their default"
    );
}

#[test]
fn what_is_written_loads_to_the_same_value() {
    let mut run: Run = load(
        None,
        &strings(&[
            "train.lr=1e-7",
            "train.decay=0.3",
            "model='a\"b'",
            "train.layers=[]",
        ]),
    )
    .unwrap();
    run.metadata = Some("two\nlines".into());
    let (_dir, path) = file(&to_toml(&run).unwrap());
    assert_eq!(load::<Run>(Some(&path), &[]).unwrap(), run);
    assert!(
        to_toml(&run).unwrap().contains("decay = 0.3\n"),
        "f32 keeps its short form"
    );
    let too_large = Run {
        seed: u64::MAX,
        ..Run::default()
    };
    assert!(
        to_toml(&too_large)
            .unwrap_err()
            .to_string()
            .contains("cannot be written as TOML")
    );
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let text = "modle = \"a\"\nlr = 1\n[train]\nlr = \"fast\"\nsteps = -1\nschedule = \"cosin\"\nlayers = [1, \"x\"]\n\n[adapter]\nmethod = \"lora\"\nrr = 4\nalpha = true\n";
    let expected = [
        "run.toml:11: `adapter.rr`: unknown key; did you mean `r`?",
        "run.toml:12: `adapter.alpha`: expected a number, found boolean `true`",
        "run.toml:2: `lr`: unknown key; did you mean `train.lr`?",
        "run.toml:1: `modle`: unknown key; did you mean `model`?",
        "run.toml:7: `train.layers.1`: expected a whole number that is not negative, found string \"x\"",
        "run.toml:4: `train.lr`: expected a number, found string \"fast\"",
        "run.toml:6: `train.schedule`: `cosin` is not accepted; did you mean `cosine`? (one of `constant`, `cosine`, `warmup-stable-decay`)",
        "run.toml:5: `train.steps`: expected a whole number that is not negative, found integer `-1`",
        "override `nonsense`: no `=`; write `key=value`, for example `train.lr=2e-4`",
        "override `train.layers=[1`: the value is not valid TOML: unclosed array, expected `]`",
        "override `train.stepz=4`: `train.stepz`: unknown key; did you mean `steps`?",
        "override `seed=`: no value; for an empty string write `seed=\"\"`",
        "override `a b=1`: `a b` is not a dotted key such as `train.lr`",
    ];
    let mut found = mistakes(
        text,
        &[
            "nonsense",
            "train.layers=[1",
            "train.stepz=4",
            "seed=",
            "a b=1",
        ],
    );
    let mut expected: Vec<String> = expected.map(str::to_owned).to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn an_override_is_named_when_it_spoils_a_good_file() {
    let found = mistakes("[train]\nlr = 1e-3\n", &["train.lr=fast"]);
    assert_eq!(
        found,
        ["override `train.lr=fast`: `train.lr`: expected a number, found string \"fast\""]
    );
}

#[test]
fn syntax_errors_give_line_and_column() {
    let found = mistakes("[train]\nlr = = 3\n", &["seed=x"]);
    assert!(
        found[0].starts_with("run.toml:2:6: not valid TOML: "),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|e| e.starts_with("override `seed=x`: `seed`: expected a whole number")),
        "{found:?}"
    );
    let twice = mistakes("seed = 1\nseed = 2\n", &[]);
    assert!(
        twice[0].starts_with("run.toml:2:1: not valid TOML: duplicate key"),
        "{twice:?}"
    );
}

#[test]
fn unreadable_files_and_required_fields_are_named() {
    let missing = load::<Run>(Some(Path::new("no/such.toml")), &[])
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("no/such.toml: cannot read: "),
        "{missing}"
    );
    let found = mistakes("[adapter]\nmethod = \"prompt\"\n", &["train.steps=x"]);
    assert!(
        found.contains(&"run.toml:1: `adapter.tokens`: required but not given".to_owned()),
        "{found:?}"
    );
    assert_eq!(found.len(), 2, "{found:?}");
    let (_dir, path) = file("");
    std::fs::write(&path, b"seed = 1\nmodel = \"\xff\"\n").unwrap();
    let text = load::<Run>(Some(&path), &[]).unwrap_err().to_string();
    assert!(text.ends_with("run.toml:2: not UTF-8 text"), "{text}");
}

#[test]
fn mistakes_inside_a_tagged_enum_are_found_there() {
    let found = mistakes("[adapter]\nmethod = \"prompt\"\ntokens = \"many\"\n", &[]);
    assert_eq!(
        found,
        [
            "run.toml:3: `adapter.tokens`: expected a whole number that is not negative, found string \"many\""
        ]
    );
    let found = mistakes("[adapter]\nmethod = \"lroa\"\nr = 4\n", &["seed=x"]);
    let method = "run.toml:2: `adapter.method`: `lroa` is not accepted; did you mean `lora`? (one of `lora`, `prompt`)";
    assert_eq!(
        found,
        [
            method,
            "override `seed=x`: `seed`: expected a whole number that is not negative, found string \"x\""
        ]
    );
}

#[test]
fn only_the_value_of_an_override_itself_is_read_as_text() {
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        names: Vec<String>,
        inner: Inner,
    }
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        note: String,
    }
    let with = |text: &str| load::<Outer>(None, &strings(&[text])).map_err(|e| e.to_string());
    assert_eq!(with("inner.note=1.50").unwrap().inner.note, "1.50");
    let error = with("names=[\"a\", 2]").unwrap_err();
    assert_eq!(
        error,
        "override `names=[\"a\", 2]`: `names.1`: expected a string, found integer `2`"
    );
    let error = with("inner={ note = 3 }").unwrap_err();
    assert_eq!(
        error,
        "override `inner={ note = 3 }`: `inner.note`: expected a string, found integer `3`"
    );
}

#[test]
fn values_that_fail_validation_are_reported_where_they_were_set() {
    let (dir, path) = file("\n[train]\nsteps = 0\n");
    let check = |run: &Run| {
        if run.train.steps == 0 {
            vec![("train.steps".into(), "must be at least 1".into())]
        } else {
            Vec::new()
        }
    };
    let error = load_with::<Run>(Some(&path), &toml::Table::new(), &[], check)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!(
            "{}/run.toml:3: `train.steps`: must be at least 1",
            dir.path().display()
        )
    );
}

#[test]
fn tables_that_would_drop_keys_are_found() {
    assert_eq!(
        tables_that_ignore_keys::<Run>().unwrap(),
        Vec::<String>::new()
    );

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Strict {
        inner: Lenient,
    }
    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Lenient {
        a: u32,
    }
    assert_eq!(tables_that_ignore_keys::<Strict>().unwrap(), ["inner"]);
}

#[test]
fn one_key_of_a_table_leaves_its_neighbours_alone() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        train: Inner,
    }
    impl Default for Outer {
        fn default() -> Self {
            Self {
                train: Inner {
                    lr: 0.5,
                    steps: 7,
                    ..Inner::default()
                },
            }
        }
    }
    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        #[serde(alias = "learning_rate")]
        lr: f64,
        steps: u64,
        note: Option<String>,
    }
    let with = |overrides: &[&str]| {
        load::<Outer>(
            None,
            &overrides
                .iter()
                .map(|o| (*o).to_owned())
                .collect::<Vec<_>>(),
        )
    };
    let outer = |lr, steps| Outer {
        train: Inner {
            lr,
            steps,
            note: None,
        },
    };
    assert_eq!(with(&[]).unwrap(), outer(0.5, 7));
    // Without the defaults of `Outer` the other key would be 0.
    assert_eq!(with(&["train.steps=9"]).unwrap(), outer(0.5, 9));
    assert_eq!(with(&["train.lr=2.0"]).unwrap(), outer(2.0, 7));
    // A value that is given counts, even one that the table's own type would have anyway, and under
    // any of its names.
    assert_eq!(with(&["train.lr=0.0"]).unwrap(), outer(0.0, 7));
    assert_eq!(with(&["train.learning_rate=3.0"]).unwrap(), outer(3.0, 7));
    assert_eq!(
        with(&["train.note=x"]).unwrap().train,
        Inner {
            note: Some("x".into()),
            ..outer(0.5, 7).train
        }
    );
    // Two names for one key: the later source wins.
    assert_eq!(
        with(&["train.learning_rate=3.0", "train.lr=4.0"]).unwrap(),
        outer(4.0, 7)
    );
    assert_eq!(
        with(&["train.lr=4.0", "train.learning_rate=3.0"]).unwrap(),
        outer(3.0, 7)
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, "[train]\nlr = 1.0\nlearning_rate = 2.0\n").unwrap();
    let error = load::<Outer>(Some(&path), &[]).unwrap_err().to_string();
    assert!(
        error.contains("run.toml") && error.contains("duplicate field `lr`"),
        "{error}"
    );
}
