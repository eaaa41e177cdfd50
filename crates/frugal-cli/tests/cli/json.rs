//! What programs read.

use serde_json::Value;

use crate::support::{Run, command, folder, frugal};

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect()
}

#[test]
fn methods_are_a_list_with_names() {
    let methods = frugal(&["methods", "--json"]).ok().json();
    let names = names(&methods);
    assert!(
        names.is_sorted() && names.contains(&"lora") && names.contains(&"prompt-tuning"),
        "{names:?}"
    );
    let lora = methods
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["name"] == "lora")
        .unwrap();
    assert_eq!(
        (
            &lora["peft_type"],
            &lora["capabilities"]["merge"],
            &lora["defaults"]["r"]
        ),
        (&"LORA".into(), &true.into(), &8.into())
    );
}

#[test]
fn a_method_comes_with_its_documentation() {
    // Aliases and either kind of hyphen name the method too.
    let method = frugal(&["methods", "show", "Prompt_Tuning", "--json"])
        .ok()
        .json();
    assert_eq!(method["name"], "prompt-tuning");
    assert!(
        method["documentation"]
            .as_str()
            .unwrap()
            .contains("2104.08691")
    );
    let page = frugal(&["methods", "show", "lora"]).ok().stdout;
    assert!(
        page.contains("Update rule") && page.contains("2106.09685") && page.contains("lora_alpha"),
        "{page}"
    );
}

#[test]
fn models_say_whether_they_are_there() {
    let models = frugal(&["models", "--json"]).ok().json();
    let names = names(&models["models"]);
    assert_eq!(names[0], "builtin");
    assert!(
        names.contains(&"smollm2-135m")
            && names.contains(&"minilm-l6")
            && names.contains(&"gemma3-270m"),
        "{names:?}"
    );
    // The cache of the tests is empty.
    assert!(
        models["models"]
            .as_array()
            .unwrap()
            .iter()
            .all(|m| m["path"].is_null())
    );
    assert_eq!(
        models["models"],
        frugal(&["models", "list", "--json"]).ok().json()["models"]
    );
}

#[test]
fn the_doctor_measures() {
    let folder = folder();
    let mut doctor = command(folder.path());
    let machine = Run::from(
        doctor
            .env("RAYON_NUM_THREADS", "1")
            .args(["doctor", "--json", "--quiet"])
            .output()
            .unwrap(),
    )
    .ok()
    .json();
    assert_eq!(machine["threads_used"], 1, "{machine}");
    for key in [
        "/gemm_gflops",
        "/gemm_gflops_sustained",
        "/read_gb_per_s",
        "/system/threads",
    ] {
        assert!(
            machine.pointer(key).unwrap().as_f64().unwrap() > 0.0,
            "{key}: {machine}"
        );
    }
    assert!(
        machine["devices"]
            .as_array()
            .unwrap()
            .contains(&"cpu".into())
    );
}

#[test]
fn a_plan_counts_what_will_be_trained() {
    let plan = frugal(&[
        "tune",
        "--dry-run",
        "--max-train-rows",
        "50",
        "--max-eval-rows",
        "20",
        "--json",
        "--quiet",
    ])
    .ok()
    .json();
    // Rank 8 on the seven layers of each of six layers (width 192, keys and values 64, inner 512),
    // and a head for two classes.
    let layer = 8 * ((192 + 192) + 2 * (192 + 64) + (192 + 192) + 3 * (192 + 512));
    assert_eq!(plan["trainable_parameters"], 6 * layer + 2 * 192);
    let parts: Vec<_> = plan["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p[0].as_str().unwrap(), p[1].as_u64().unwrap()))
        .collect();
    assert_eq!(parts, [("train", 50), ("validation", 20), ("test", 20)]);
    assert!(
        plan["peak_memory_bytes"].as_u64().unwrap() > 10_000_000
            && plan["train_seconds"].as_f64().unwrap() > 0.0,
        "{plan}"
    );
}
