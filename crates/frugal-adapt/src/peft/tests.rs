use super::*;

#[test]
fn the_card_counts_the_head_and_names_what_can_load_it() {
    let of = |method: &str, head| card(registry::find(method).unwrap(), "base", (10, head), None);
    let lora = of("lora", 4);
    assert!(
        lora.contains("library_name: peft") && lora.contains("PeftModel.from_pretrained"),
        "{lora}"
    );
    assert!(
        lora.contains(" 14 trained parameters, 4 of them in the classification head. "),
        "{lora}"
    );
    let own = of("houlsby", 0);
    assert!(
        !own.contains("library_name")
            && !own.contains("PeftModel")
            && own.contains(" 10 trained parameters. "),
        "{own}"
    );
    assert!(
        [&lora, &own]
            .iter()
            .all(|card| card.contains("`frugal eval --adapter DIR`"))
    );
}

fn folder_of(config: Value, extra: Option<Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    };
    write(CONFIG_FILE, &config);
    extra.iter().for_each(|extra| write(EXTRA_FILE, extra));
    folder
}

#[test]
fn a_type_that_is_not_that_of_the_method_beside_it_is_not_overlooked() {
    let extra = json!({"method": "lora", "version": "0.1.0"});
    for peft_type in ["IA3", "LoRA", "NONE"] {
        let folder = folder_of(
            json!({"peft_type": peft_type, "r": 4, "target_modules": ["q_proj"]}),
            Some(extra.clone()),
        );
        let error = describe(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(peft_type) && error.contains("`lora`") && error.contains("frugal.json"),
            "{error}"
        );
    }
    let folder = folder_of(
        json!({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}),
        Some(extra),
    );
    assert_eq!(describe(folder.path()).unwrap().method, "lora");
}

#[test]
fn modules_to_save_that_are_no_names_are_not_taken_for_none() {
    let with = |modules: Value| {
        let config = json!({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "modules_to_save": modules});
        describe(folder_of(config, None).path())
    };
    for modules in [
        json!("score"),
        json!(3),
        json!({"score": true}),
        json!(["score", 3]),
        json!([["score"]]),
    ] {
        let error = with(modules.clone()).unwrap_err().to_string();
        assert!(error.contains("`modules_to_save`"), "{modules}: {error}");
    }
    for modules in [Value::Null, json!([]), json!(["score"])] {
        with(modules).unwrap();
    }
}

/// peft 0.21 takes one factor where `get_fbd_cuda()` gives nothing, for new adapters and for those of
/// files, and saves the number that it was given.
#[test]
fn boft_that_peft_made_on_a_cpu_has_one_factor_whatever_its_configuration_says() {
    let factors = |fixture: &str, said: u64| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/adapters")
            .join(fixture);
        let folder = tempfile::tempdir().unwrap();
        let weights = from.join(WEIGHTS_FILE);
        std::fs::copy(weights, folder.path().join(WEIGHTS_FILE)).unwrap();
        let mut config = read_json(&from.join(CONFIG_FILE)).unwrap();
        config["boft_n_butterfly_factor"] = said.into();
        std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
        let files = Files::read(folder.path()).unwrap();
        files.config["boft_n_butterfly_factor"].as_u64().unwrap()
    };
    assert_eq!(factors("llama-boft", 2), 1);
    assert_eq!(factors("llama-boft", 1), 1);
    assert_eq!(factors("llama-boft-butterfly", 2), 2);
}
