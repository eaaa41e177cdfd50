//! Models of the Hugging Face hub by `org/name`, through its shared cache.

use std::path::PathBuf;

use frugal_nn::LoadError;

/// Files that are fetched where a repository has them.
const OPTIONAL: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
];

/// The local folder of a repository, downloaded where it is not in the cache.
///
/// # Errors
/// [`LoadError::Hub`] when a file is neither in the cache nor can be downloaded.
pub(super) fn snapshot(repository: &str, offline: bool) -> Result<PathBuf, LoadError> {
    let failed = |reason: String| LoadError::Hub {
        repository: repository.into(),
        reason,
    };
    let cache = hf_hub::Cache::from_env();
    let cached = cache.model(repository.into());
    let in_cache = |file: &str| cached.get(file);
    let api = || {
        hf_hub::api::sync::ApiBuilder::from_env()
            .with_progress(true)
            .build()
            .map_err(|e| failed(e.to_string()))
    };
    let get = |file: &str| -> Result<PathBuf, LoadError> {
        if let Some(path) = in_cache(file) {
            return Ok(path);
        }
        if offline {
            return Err(failed(format!(
                "`{file}` is not in the cache and `--offline` was given"
            )));
        }
        api()?
            .model(repository.into())
            .get(file)
            .map_err(|e| failed(format!("`{file}`: {e}")))
    };
    let config = get("config.json")?;
    let folder = config
        .parent()
        .map(PathBuf::from)
        .ok_or_else(|| failed("the cache has no folder for it".into()))?;
    match get("model.safetensors") {
        Ok(_) => {}
        Err(single) => match get("model.safetensors.index.json") {
            Ok(index) => {
                for shard in crate::load::safetensors::shards(&index)? {
                    get(&shard)?;
                }
            }
            Err(_) => return Err(single),
        },
    }
    // A repository need not have these; what is missing is noticed where it is needed.
    for file in OPTIONAL {
        let _ = get(file);
    }
    Ok(folder)
}
