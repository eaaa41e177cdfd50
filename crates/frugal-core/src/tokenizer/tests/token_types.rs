//! Which tokenizers tell a model the two texts of a pair apart.

use serde_json::Value;

use super::{TextTokenizer, fixture};

#[test]
fn token_types_of_a_pair_are_given_where_the_class_of_the_tokenizer_gives_them() {
    let path = fixture("../token_types.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |i: usize| golden["pair"][i].as_str().unwrap();
    let source = fixture("word-piece");
    let read = |file: &str| std::fs::read(source.join(file)).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 21);
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, bytes: &[u8]| std::fs::write(folder.path().join(file), bytes);
        write("tokenizer.json", &read("tokenizer.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json")).unwrap();
        config.as_object_mut().unwrap().remove("tokenizer_class");
        for (key, value) in case["config"].as_object().unwrap() {
            config[key] = value.clone();
        }
        write("tokenizer_config.json", config.to_string().as_bytes()).unwrap();
        let model = case["model"].to_string();
        if !case["model"].is_null() {
            write("config.json", model.as_bytes()).unwrap();
        }
        let first = TextTokenizer::from_folder(folder.path()).unwrap();
        // What is saved beside the same model says the same.
        let saved = tempfile::tempdir().unwrap();
        first.save(saved.path()).unwrap();
        if !case["model"].is_null() {
            std::fs::write(saved.path().join("config.json"), model).unwrap();
        }
        let given = case["token_type_ids"].as_array();
        let given: Vec<u32> = given.map_or(Vec::new(), |ids| {
            ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
        });
        for tokenizer in [first, TextTokenizer::from_folder(saved.path()).unwrap()] {
            let cut = tokenizer.encode_cut(text(0), Some(text(1)), 64).unwrap();
            assert_eq!(cut.type_ids, given, "{case}");
            let whole = tokenizer.encode_pair(text(0), Some(text(1))).unwrap();
            assert_eq!(whole.ids, cut.ids, "{case}");
            let types: Vec<u32> = whole.token_type_ids;
            assert_eq!(types.iter().any(|id| *id != 0), !given.is_empty(), "{case}");
        }
    }
}
