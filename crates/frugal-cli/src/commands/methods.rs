//! `frugal methods`: what there is, and the documentation of one.

use anyhow::Result;
use clap::Subcommand;
use frugal::adapt::Method;
use frugal::adapt::registry::{METHODS, find};
use frugal_core::table::{Column, Table};
use serde_json::{Value, json};

use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui::{self, markdown, table};

const EXAMPLES: &str = "\
Examples:
  frugal methods                 a table of all methods
  frugal methods show lora       what it does, its cost, its settings, its source
  frugal methods --json          the same for programs";

/// List the adaptation methods, or show the documentation of one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a method does, its formula, cost, settings and source
    Show {
        /// Name or alias of the method
        name: String,
    },
}

/// Prints the table or one method.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.action {
        None if args.output.json => {
            ui::print_json(&METHODS.iter().map(|m| describe(m)).collect::<Vec<_>>())?
        }
        None => list(),
        Some(Action::Show { name }) => {
            let method = find(name)?;
            if args.output.json {
                let mut value = describe(method);
                value["documentation"] = json!(method.documentation());
                ui::print_json(&value)?;
            } else {
                show(method);
            }
        }
    }
    Ok(Outcome::Done)
}

fn describe(method: &Method) -> Value {
    json!({
        "name": method.name,
        "aliases": method.aliases,
        "family": method.family,
        "summary": method.summary,
        "capabilities": method.capabilities,
        "default_lr": method.default_lr,
        "peft_type": method.peft_type,
        "in_peft": method.is_read_by_peft(),
        "defaults": (method.defaults)(),
    })
}

fn list() {
    let ticks: [(&str, fn(&Method) -> bool); 3] = [
        ("merge", |m| m.capabilities.merge),
        ("identity", |m| m.capabilities.identity_at_init),
        ("mixed", |m| m.capabilities.mixed_batch),
    ];
    let words = ["name", "family", "what it trains"];
    let headings = words.into_iter().chain(ticks.map(|(name, _)| name));
    let mut table = Table::new(headings.map(Column::text));
    for method in METHODS {
        let family = json!(method.family).as_str().unwrap_or_default().to_owned();
        let tick = |(_, can): (&str, fn(&Method) -> bool)| if can(method) { "✓" } else { "" };
        let words = [method.name, family.as_str(), method.summary];
        table.row(words.into_iter().chain(ticks.map(tick)));
    }
    table::print(&table);
    ui::print(
        "\nmerge: can be merged into the weights. identity: changes nothing before training. mixed: sequences of one \
         batch may use different adapters.\n`frugal methods show NAME` explains one.",
    );
}

/// Names of what the method can do.
fn capabilities(method: &Method) -> Vec<String> {
    let Value::Object(all) = json!(method.capabilities) else {
        return Vec::new();
    };
    all.into_iter()
        .filter(|(_, can)| can == &Value::Bool(true))
        .map(|(name, _)| name.replace('_', "-"))
        .collect()
}

fn show(method: &Method) {
    ui::print(&markdown::render(&method.documentation(), ui::width()));
    let can = capabilities(method);
    let in_peft = if method.is_read_by_peft() {
        "yes"
    } else {
        "no"
    };
    let mut rows = vec![
        ("aliases", method.aliases.join(", ")),
        (
            "capabilities",
            if can.is_empty() {
                "none".into()
            } else {
                can.join(", ")
            },
        ),
        ("learning rate", format!("{:e}", method.default_lr)),
        ("peft_type", method.peft_type.into()),
        ("peft reads it", in_peft.into()),
    ];
    rows.retain(|(_, value)| !value.is_empty());
    ui::print(&format!("\n{}", table::pairs(&rows)));
    let settings = (method.defaults)();
    if !settings.is_empty() {
        ui::print("\nSettings (in a file under [method], or --set method.NAME=VALUE):");
        let settings: Vec<(String, String)> = settings
            .into_iter()
            .map(|(name, default)| (format!("  {name}"), shown(&default)))
            .collect();
        ui::print(&table::pairs(&settings));
    }
}

/// A default as a person would write it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "unset".into(),
        Value::Object(map) if map.is_empty() => "{}".into(),
        other => other.to_string(),
    }
}
