//! Settings with which every method fits the tiny models.

use frugal::adapt::Method;
use serde_json::{Map, json};

/// The defaults, but for what the tiny models have no room for: sizes and lengths of pieces are at
/// most 8.
pub fn settings(method: &Method) -> Map<String, serde_json::Value> {
    let known = (method.defaults)();
    let few = |name: &str| name == "r" || name.ends_with("_size") || name.ends_with("_length");
    let pieces = known
        .iter()
        .filter(|(name, value)| few(name) && value.as_u64() > Some(8))
        .map(|(name, _)| (name.as_str(), json!(8)));
    let others = [
        ("num_virtual_tokens", json!(4)),
        ("n_frequency", json!(100)),
        ("init_vector_bank_bound", json!(0.2)),
        ("init_theta_d_bound", json!(2.0)),
        // The two tokens that tell the classes of the examples apart.
        ("token_indices", json!([10, 11])),
        // The first token of one of the two sequences, and of some examples.
        ("alora_invocation_tokens", json!([30])),
        ("velora_config", json!({"num_groups": 16})),
        // In place of folders of trained adapters.
        (
            "members",
            json!([{"bottleneck_dim": 4}, {"bottleneck_dim": 6}]),
        ),
    ];
    let others = others
        .into_iter()
        .filter(|(name, _)| known.contains_key(*name));
    pieces
        .chain(others)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
