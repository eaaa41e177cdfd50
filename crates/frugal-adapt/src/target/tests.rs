use super::*;
use frugal_models::ModelConfig;

fn sites() -> SiteTable {
    let config = serde_json::json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64});
    ModelConfig::from_json(config, "test").unwrap().sites()
}

fn paths(targets: &Targets) -> Vec<String> {
    let sites = sites();
    targets
        .select(&sites)
        .unwrap()
        .into_iter()
        .map(|id| sites.info(id).path.clone())
        .collect()
}

fn list(names: &[&str]) -> Names {
    Names::List(names.iter().map(|n| (*n).into()).collect())
}

#[test]
fn all_linear_leaves_the_head_out() {
    let found = paths(&Targets::default());
    assert_eq!(found.len(), 3 * 7);
    assert!(!found.contains(&"lm_head".to_owned()));
}

#[test]
fn a_list_matches_whole_components() {
    let found = paths(&Targets {
        target_modules: list(&["layers.1.self_attn.q_proj"]),
        ..Targets::default()
    });
    assert_eq!(found, ["model.layers.1.self_attn.q_proj"]);
    assert!(refused(list(&["proj"]), None).contains("`proj` matched nothing"));
}

fn refused(target_modules: Names, exclude_modules: Option<Names>) -> String {
    Targets {
        target_modules,
        exclude_modules,
        ..Targets::default()
    }
    .select(&sites())
    .unwrap_err()
    .to_string()
}

fn text(pattern: &str) -> Names {
    Names::Pattern(pattern.into())
}

#[test]
fn a_name_as_a_single_text_is_answered_with_a_list() {
    let targets = refused(text("q_proj"), None);
    assert_eq!(
        targets,
        "`target_modules`: `q_proj` matched nothing: a single text is a pattern for the whole path; write [\"q_proj\"]"
    );
    assert!(refused(text("self_attn.q_proj"), None).contains("write [\"self_attn.q_proj\"]"));
    let excluded = refused(text("all-linear"), Some(text("q_proj")));
    assert!(
        excluded.contains("`exclude_modules`") && excluded.contains("write [\"q_proj\"]"),
        "{excluded}"
    );
}

#[test]
fn an_entry_that_matches_nothing_is_named() {
    let some = list(&["q_proj", "v_porj"]);
    let message = refused(some, None);
    assert!(
        message.contains("`target_modules`: `v_porj`") && message.contains("did you mean `v_proj`"),
        "{message}"
    );
    for names in [list(&["zzz"]), text("zzz")] {
        assert!(
            refused(text("all-linear"), Some(names))
                .contains("`exclude_modules`: `zzz` matched nothing")
        );
    }
    let patterns: Patterns<usize> = ["q_proj", "zzz"]
        .map(|k| (k.to_owned(), 4))
        .into_iter()
        .collect();
    let message = check_patterns("rank_pattern", &patterns, &sites())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`rank_pattern`: `zzz` matched nothing"),
        "{message}"
    );
    // It is there, but nothing is left of it.
    assert!(refused(list(&["q_proj"]), Some(list(&["q_proj"]))).contains("leave nothing"));
}

#[test]
fn files_may_name_what_this_model_lacks() {
    let settings = |value: Value| value.as_object().unwrap().clone();
    let file = settings(json!({
        "target_modules": ["q_proj", "query", "w2"], "exclude_modules": ["key"], "feedforward_modules": ["w2"],
        "rank_pattern": {"q_proj": 4, "query": 2}, "r": 8,
    }));
    let known = json!({"target_modules": ["q_proj"], "feedforward_modules": [], "rank_pattern": {"q_proj": 4}, "r": 8});
    assert_eq!(for_model(file, &sites()), settings(known));
    let strange = settings(json!({"target_modules": ["query"]}));
    assert_eq!(for_model(strange.clone(), &sites()), strange);
}

#[test]
fn what_is_neither_names_nor_a_pattern_says_what_it_must_be() {
    let message = serde_json::from_value::<Names>(json!(5))
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "must be a list of names, a pattern or \"all-linear\""
    );
}

#[test]
fn a_pattern_must_match_the_whole_path_and_exclusion_wins() {
    let targets = Targets {
        target_modules: Names::Pattern(r".*\.(q|v)_proj".into()),
        exclude_modules: Some(list(&["v_proj"])),
        ..Targets::default()
    };
    assert!(paths(&targets).iter().all(|p| p.ends_with("q_proj")));
    assert_eq!(paths(&targets).len(), 3);
}

#[test]
fn layers_filter_lists() {
    let targets = Targets {
        target_modules: list(&["q_proj"]),
        layers_to_transform: Some(Layers::Many(vec![0, 2])),
        ..Targets::default()
    };
    assert_eq!(
        paths(&targets),
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.2.self_attn.q_proj"
        ]
    );
    let outside = Targets {
        layers_to_transform: Some(Layers::One(3)),
        ..targets
    };
    assert!(
        outside
            .select(&sites())
            .unwrap_err()
            .to_string()
            .contains("blocks 0 to 2")
    );
}

#[test]
fn layers_filter_all_linear_and_the_file_selects_the_same() {
    let sites = sites();
    for layers_pattern in [None, Some(Names::Pattern("layers".into()))] {
        let targets = Targets {
            layers_to_transform: Some(Layers::Many(vec![0, 2])),
            layers_pattern,
            ..Targets::default()
        };
        let found = paths(&targets);
        assert_eq!(found.len(), 2 * 7);
        assert!(
            found
                .iter()
                .all(|p| p.starts_with("model.layers.0.") || p.starts_with("model.layers.2.")),
            "{found:?}"
        );
        let saved =
            crate::target::saved_targets(&targets, &sites, &targets.select(&sites).unwrap());
        let target_modules = serde_json::from_value(saved).unwrap();
        assert_eq!(
            paths(&Targets {
                target_modules,
                ..targets
            }),
            found
        );
    }
}

#[test]
fn layers_do_not_go_with_a_pattern() {
    let targets = Targets {
        target_modules: Names::Pattern(r".*\.q_proj".into()),
        layers_to_transform: Some(Layers::One(1)),
        ..Targets::default()
    };
    let message = targets.select(&sites()).unwrap_err().to_string();
    assert!(
        message.contains("`layers_to_transform`") && message.contains("give a list"),
        "{message}"
    );
}

#[test]
fn nothing_matched_lists_what_there_is() {
    let message = Targets {
        target_modules: list(&["q_porj"]),
        ..Targets::default()
    }
    .select(&sites())
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("did you mean `q_proj`") && message.contains("down_proj"),
        "{message}"
    );
}
