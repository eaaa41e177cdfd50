//! Data sets of the Hugging Face hub, by `org/name`, or `org/name:folder` where a repository holds
//! several.

use std::path::Path;

use frugal_models::load::Lookup;

use super::RunError;

/// Endings of data files, each perhaps with one of a packing behind it.
const ENDINGS: [&str; 6] = [".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"];
const PACKINGS: [&str; 3] = ["", ".gz", ".zst"];

/// The files that a name in a configuration stands for: those of a part of a data set on the hub,
/// else the name itself.
pub(super) fn files(name: &str, part: &str, lookup: &Lookup) -> Result<Vec<String>, RunError> {
    match repository(name) {
        Some((repository, folder)) => hub_files(repository, folder, part, lookup),
        None => Ok(vec![name.to_owned()]),
    }
}

/// `org/name` and the folder after a colon; `None` for what is a file, or would be one.
fn repository(name: &str) -> Option<(&str, Option<&str>)> {
    let (repository, folder) = match name.split_once(':') {
        Some((repository, folder)) => (repository, Some(folder)),
        None => (name, None),
    };
    let part = |p: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !p.is_empty() && p.chars().all(allowed) && !p.starts_with('.')
    };
    let (org, set) = repository.split_once('/')?;
    let is_file = Path::new(name).exists()
        || Path::new(org).exists()
        || is_data(set)
        || set.ends_with(".txt");
    (part(org) && part(set) && !is_file).then_some((repository, folder))
}

fn is_data(file: &str) -> bool {
    let file = file.to_ascii_lowercase();
    let ends = |ending: &str| {
        PACKINGS
            .iter()
            .any(|p| file.ends_with(&format!("{ending}{p}")))
    };
    ENDINGS.iter().any(|ending| ends(ending))
}

/// The files of a part, of all that a repository holds.
fn choose<'a>(
    files: &'a [String],
    folder: Option<&str>,
    part: &str,
) -> Result<Vec<&'a String>, String> {
    let inside =
        |file: &&String| folder.is_none_or(|folder| file.starts_with(&format!("{folder}/")));
    let data: Vec<&String> = files.iter().filter(|f| is_data(f)).filter(inside).collect();
    let names: &[&str] = match part {
        "validation" => &["validation", "valid", "dev", "val"],
        other => &[other],
    };
    let of_part = |name: &str| -> Vec<&String> {
        let word = |c: char| c.is_ascii_alphanumeric();
        let is = |file: &&&String| {
            file.split(|c| !word(c))
                .any(|w| w.eq_ignore_ascii_case(name))
        };
        data.iter().filter(is).copied().collect()
    };
    let mut found = names
        .iter()
        .map(|n| of_part(n))
        .find(|f| !f.is_empty())
        .unwrap_or_default();
    if found.is_empty() && part == "train" {
        found.clone_from(&data);
    }
    let mut folders: Vec<&str> = found
        .iter()
        .map(|f| f.rsplit_once('/').map_or("", |(d, _)| d))
        .collect();
    folders.sort_unstable();
    folders.dedup();
    match folders[..] {
        [] => Err(format!(
            "it holds no {part} file that can be read; its files are {}",
            some(files)
        )),
        [_] => Ok(found),
        _ => Err(format!(
            "it holds several sets: name one as in `ORG/NAME:{}`; there are {}",
            folders[0],
            folders.join(", ")
        )),
    }
}

/// The first names of a list.
fn some(files: &[String]) -> String {
    let shown: Vec<&str> = files.iter().take(10).map(String::as_str).collect();
    if shown.is_empty() {
        "none".into()
    } else {
        shown.join(", ")
    }
}

#[cfg(feature = "hub")]
fn hub_files(
    name: &str,
    folder: Option<&str>,
    part: &str,
    lookup: &Lookup,
) -> Result<Vec<String>, RunError> {
    use hf_hub::{Cache, Repo};
    let failed = |reason: String| RunError::DataHub {
        name: name.into(),
        reason,
    };
    if lookup.offline {
        let repo = Repo::dataset(name.into());
        let cached = Cache::from_env().path().join(repo.folder_name());
        let commit = std::fs::read_to_string(cached.join("refs/main")).map_err(|_| {
            failed("it is not in the cache, and `--offline` or HF_HUB_OFFLINE keeps it from being fetched; a file on this machine can be given in its place".into())
        })?;
        let root = cached.join("snapshots").join(commit.trim());
        let files = below(&root);
        let chosen = choose(&files, folder, part).map_err(failed)?;
        let path = |file: &&String| root.join(file).display().to_string();
        return Ok(chosen.iter().map(path).collect());
    }
    let api = hf_hub::api::sync::ApiBuilder::from_env()
        .with_progress(true)
        .build()
        .map_err(|e| failed(e.to_string()))?
        .dataset(name.into());
    let info = api
        .info()
        .map_err(|e| failed(format!("its files cannot be listed: {e}")))?;
    let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let chosen = choose(&files, folder, part).map_err(failed)?;
    let fetch = |file: &&String| {
        let path = api
            .get(file)
            .map_err(|e| failed(format!("`{file}`: {e}")))?;
        Ok(path.display().to_string())
    };
    chosen.iter().map(fetch).collect()
}

/// The files below a folder, by their paths from there.
#[cfg(feature = "hub")]
fn below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(file) = path.strip_prefix(root) {
                found.push(file.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

#[cfg(not(feature = "hub"))]
fn hub_files(
    name: &str,
    _folder: Option<&str>,
    _part: &str,
    _lookup: &Lookup,
) -> Result<Vec<String>, RunError> {
    Err(RunError::DataHub {
        name: name.into(),
        reason: "this build has no hub support (cargo feature `hub`)".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_no_data_set_of_the_hub() {
        for name in [
            "data.jsonl",
            "nowhere/train.csv.gz",
            "a/b/c",
            "-",
            "x*/y",
            "src/missing",
        ] {
            assert_eq!(repository(name), None, "{name}");
        }
        assert_eq!(
            repository("stanfordnlp/imdb"),
            Some(("stanfordnlp/imdb", None))
        );
        assert_eq!(
            repository("nyu-mll/glue:sst2"),
            Some(("nyu-mll/glue", Some("sst2")))
        );
    }

    #[test]
    fn the_files_of_a_part_are_told_by_their_names() {
        let files = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let one = files(&[
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
        ]);
        assert_eq!(choose(&one, None, "train").unwrap(), [&one[2], &one[3]]);
        assert_eq!(choose(&one, None, "test").unwrap(), [&one[1]]);
        assert!(
            choose(&one, None, "validation")
                .unwrap_err()
                .contains("no validation file")
        );
        let two = files(&[
            "cola/train.parquet",
            "sst2/train.parquet",
            "sst2/dev.parquet",
        ]);
        let error = choose(&two, None, "train").unwrap_err();
        assert!(error.contains("cola, sst2"), "{error}");
        assert_eq!(choose(&two, Some("sst2"), "validation").unwrap(), [&two[2]]);
        let plain = files(&["squad.jsonl.gz"]);
        assert_eq!(choose(&plain, None, "train").unwrap(), [&plain[0]]);
    }

    #[test]
    fn a_data_set_that_is_not_in_the_cache_says_so_offline() {
        let lookup = Lookup {
            offline: true,
            ..Lookup::default()
        };
        let error = files("no-such-org/no-such-set", "train", &lookup)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not in the cache") && error.contains("--offline"),
            "{error}"
        );
    }
}
