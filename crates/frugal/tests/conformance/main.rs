//! What every registered method must hold, on a decoder and an encoder: one test for each pair,
//! made from the registry. A method joins by its line there.
//!
//! The checks of a pair share one trained adapter.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they skip and found"
)]

mod case;
mod checks;
#[path = "../it/method_settings.rs"]
mod method_settings;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../it/support.rs"]
mod support;
mod tensors;

use std::process::ExitCode;

use frugal::adapt::Method;
use frugal::adapt::registry::METHODS;
use libtest_mimic::{Arguments, Trial};

/// A decoder, an encoder, a recurrence, a decoder of learnt tokens, a mixture of experts with a
/// recurrent router, and one whose blocks share attention and experts.
const MODELS: [&str; 7] = [
    "llama",
    "bert",
    "mamba",
    "gated_ssm",
    "tokenformer",
    "rmoe",
    "widenet",
];

/// Methods that a decoder of shared and routed layers is tried with: one for each kind of hook.
const ON_MOR: [&str; 13] = [
    "bitfit",
    "full",
    "houlsby",
    "ia3",
    "iaa",
    "ln-tuning",
    "lora",
    "oft",
    "pela",
    "prefix-tuning",
    "prompt-tuning",
    "ssf",
    "unipelt",
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let pairs = METHODS
        .iter()
        .flat_map(|method| MODELS.map(|model| (method, model)));
    let on_mor = |method: &&&Method| ON_MOR.contains(&method.name);
    let pairs = pairs.chain(METHODS.iter().filter(on_mor).map(|method| (method, "mor")));
    let trials = pairs.map(|(method, model)| {
        let name = format!("conformance::{}::{model}", method.name);
        Trial::test(name, move || checks::all(method, model).map_err(Into::into))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
