//! What is trained.

use serde_json::{Value, json};

/// An arm: its name, the method and its settings.
pub(super) struct Arm {
    pub name: &'static str,
    pub method: &'static str,
    pub settings: Value,
    pub lr: f64,
}

/// Full fine-tuning, which the steps of the others are measured by.
pub(super) const FULL: &str = "full";
/// Adapters without the path.
pub(super) const SCATTERED: &str = "adapter 16";
/// The paper's best.
pub(super) const BEST: &str = "IAA-L 12, 8";

/// All but full fine-tuning and biases have the same number of parameters: `4 · 16 · d_model` for each
/// block of MiniLM and of the other encoder; LoRA on two square layers comes to that with rank 16.
pub(super) fn arms(blocks: usize) -> Vec<Arm> {
    let iaa = |name, aside: &str, inside: usize, beside: usize| Arm {
        name,
        method: "iaa",
        settings: json!({"aside": aside, "inside_dim": inside, "aside_dim": beside}),
        lr: 1e-3,
    };
    // `4 · blocks · inside + 2 · beside = 4 · blocks · 16`; of BERT-base the paper has 15 and 24.
    let beside = 2 * blocks;
    vec![
        Arm {
            name: FULL,
            method: "full",
            settings: json!({}),
            lr: 1e-4,
        },
        Arm {
            name: "bitfit",
            method: "bitfit",
            settings: json!({}),
            lr: 1e-3,
        },
        Arm {
            name: "lora 16",
            method: "lora",
            settings: json!({"r": 16, "lora_alpha": 16, "target_modules": ["query", "value"]}),
            lr: 1e-3,
        },
        iaa(SCATTERED, "layer", 16, 0),
        iaa("IAA-S 8, 8", "sub_layer", 8, 8),
        iaa(BEST, "layer", 12, 8),
        iaa("IAA-M 15", "model", 15, beside),
    ]
}
