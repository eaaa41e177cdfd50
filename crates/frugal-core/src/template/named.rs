//! Chat templates that are known by a name, for models that have none.

/// The names with their Jinja sources.
const TEMPLATES: [(&str, &str); 8] = [
    (
        "chatml",
        include_str!("../../assets/templates/chatml.jinja"),
    ),
    ("gemma", include_str!("../../assets/templates/gemma.jinja")),
    (
        "llama2",
        include_str!("../../assets/templates/llama2.jinja"),
    ),
    (
        "llama3",
        include_str!("../../assets/templates/llama3.jinja"),
    ),
    (
        "mistral",
        include_str!("../../assets/templates/mistral.jinja"),
    ),
    ("phi3", include_str!("../../assets/templates/phi3.jinja")),
    (
        "vicuna",
        include_str!("../../assets/templates/vicuna.jinja"),
    ),
    (
        "zephyr",
        include_str!("../../assets/templates/zephyr.jinja"),
    ),
];

/// The source of a template by its name.
pub fn named(name: &str) -> Option<&'static str> {
    let found = TEMPLATES.iter().find(|(known, _)| *known == name);
    found.map(|(_, source)| *source)
}

/// The names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}
