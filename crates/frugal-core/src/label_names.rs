//! Names of a head's outputs in a `config.json`.

use serde_json::Value;

/// The names of so many outputs: those of `id2label`, and `LABEL_i` where it has none.
///
/// # Errors
/// A name that two outputs have: neither data nor predictions could tell them apart.
pub fn label_names(config: &Value, count: usize) -> Result<Vec<String>, String> {
    let given = config.get("id2label").and_then(Value::as_object);
    let name = |i: usize| {
        let name = given.and_then(|names| names.get(&i.to_string())?.as_str());
        name.map_or_else(|| format!("LABEL_{i}"), str::to_owned)
    };
    let names: Vec<String> = (0..count).map(name).collect();
    let mut first = std::collections::HashMap::new();
    for (i, name) in names.iter().enumerate() {
        if let Some(other) = first.insert(name, i) {
            return Err(format!(
                "outputs {other} and {i} are both named {name:?}, and could not be told apart: give each a name of its own"
            ));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(id2label: Value, count: usize) -> Result<Vec<String>, String> {
        let config = json!({ "id2label": id2label });
        label_names(&config, count)
    }

    #[test]
    fn two_outputs_of_one_name_are_refused_rather_than_shown_as_one() {
        let error = names(json!({"0": "yes", "1": "no", "2": "yes"}), 3).unwrap_err();
        assert!(error.contains("outputs 0 and 2") && error.contains("\"yes\""));
        // A name that is like that of an output without one.
        let error = names(json!({"0": "LABEL_1"}), 2).unwrap_err();
        assert!(error.contains("LABEL_1"), "{error}");
    }

    #[test]
    fn outputs_without_a_name_have_that_of_transformers() {
        assert_eq!(names(json!({"1": "no"}), 2).unwrap(), ["LABEL_0", "no"]);
        assert_eq!(names(Value::Null, 2).unwrap(), ["LABEL_0", "LABEL_1"]);
    }
}
