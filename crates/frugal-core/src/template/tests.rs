use std::path::PathBuf;

use super::*;

fn settings() -> TokenizerSettings {
    TokenizerSettings {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        ..TokenizerSettings::default()
    }
}

/// Every conversation through every template, against `transformers` with jinja2.
#[test]
fn templates_render_as_jinja2_does() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/templates");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let golden: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut template =
            ChatTemplate::new(golden["template"].as_str().unwrap(), &settings()).unwrap();
        template.set_clock(golden["clock"].as_i64().unwrap());
        for case in golden["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let result =
                template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
            match (result, case["rendered"].as_str(), case["error"].as_str()) {
                (Ok(text), Some(expected), _) => {
                    assert_eq!(text, expected, "{}: {messages:?}", path.display())
                }
                (Err(TemplateError::Refused(why)), _, Some(expected)) => {
                    assert_eq!(why, expected, "{}", path.display())
                }
                (result, ..) => panic!("{}: {case}: {result:?}", path.display()),
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 7 * 22);
}

#[test]
fn errors_name_the_line() {
    let error = ChatTemplate::new("a\n{% if %}", &settings())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("line 2") && error.lines().count() == 1,
        "{error}"
    );
    let template = ChatTemplate::new("a\n\n{{ messages[0].role.nope() }}", &settings()).unwrap();
    let error = template
        .render(&[Message::new("user", "x")], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn a_bad_date_format_is_an_error() {
    let template = ChatTemplate::new("{{ strftime_now('%!') }}", &settings()).unwrap();
    assert!(matches!(
        template.render(&[], false),
        Err(TemplateError::Failed(_))
    ));
}

#[test]
fn templates_by_name_render_as_jinja2_does() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat.json");
    let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = Vec::new();
    for of_name in golden["named"].as_array().unwrap() {
        let name = of_name["name"].as_str().unwrap();
        let template = ChatTemplate::new(named(name).unwrap(), &settings()).unwrap();
        for case in of_name["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let result =
                template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
            match (result, case["rendered"].as_str()) {
                (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}: {case}"),
                (Err(TemplateError::Refused(why)), None) => {
                    assert_eq!(why, case["error"].as_str().unwrap())
                }
                (result, _) => panic!("{name}: {case}: {result:?}"),
            }
        }
        checked.push(name);
    }
    assert_eq!(checked, names().collect::<Vec<_>>());
}

#[test]
fn line_ends_of_windows_are_those_of_unix_as_in_jinja2() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat.json");
    let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let messages = [
        Message::new("user", "Hi"),
        Message::new("assistant", "Hello!"),
    ];
    let cases = golden["line_ends"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let template = ChatTemplate::new(case["template"].as_str().unwrap(), &settings()).unwrap();
        let text = template.render(&messages, false).unwrap();
        assert_eq!(text, case["rendered"].as_str().unwrap(), "{case}");
    }
}

#[test]
fn a_template_is_a_file_or_a_known_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.jinja");
    std::fs::write(&file, "{{ messages }}").unwrap();
    assert_eq!(
        source_of(&file.display().to_string()).unwrap(),
        "{{ messages }}"
    );
    assert!(source_of("chatml").unwrap().contains("<|im_start|>"));
    let error = source_of("chatlm").unwrap_err().to_string();
    assert!(
        error.contains("`chatlm`") && error.contains("chatml, gemma, llama2, llama3"),
        "{error}"
    );
    let error = source_of("./missing.jinja").unwrap_err().to_string();
    assert!(error.contains("missing.jinja"), "{error}");
}

mod hostile;

#[test]
fn options_of_tojson_are_those_of_transformers() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tojson.json");
    let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 60);
    for case in cases {
        // The compiler refuses what it can compute.
        let template = ChatTemplate::new(case["template"].as_str().unwrap(), &settings());
        let result = template.and_then(|template| template.render(&messages, false));
        match (result, case["rendered"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{case}"),
            (Err(_), None) => {}
            (result, _) => panic!("{case}: {result:?}"),
        }
    }
}
