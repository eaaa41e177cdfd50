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
