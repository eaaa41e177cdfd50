//! Groups of systems by the measures of efficiency: raw, on one scale, as a radar chart.

use super::markup::{document, escape, score, section};
use super::radar::{self, Axis};
use super::rows::Rows;
use crate::efficiency::{System, scaled};
use crate::suite::Work;
use frugal_core::human::{self, significant};

/// Systems that are compared with each other.
#[derive(Clone, Debug)]
pub struct SystemGroup {
    /// Heading.
    pub name: String,
    /// What their runs did, which decides what latency and throughput mean.
    pub work: Work,
    /// The one that compression is relative to.
    pub baseline: String,
    /// The systems.
    pub systems: Vec<System>,
}

/// All groups of a suite.
pub struct EfficiencyReport<'a> {
    /// Heading of the page.
    pub title: &'a str,
    /// One line below it.
    pub subtitle: &'a str,
    /// The groups.
    pub groups: &'a [SystemGroup],
}

impl EfficiencyReport<'_> {
    /// All tables in Markdown.
    pub fn to_markdown(&self) -> String {
        let group = |g: &SystemGroup| {
            format!(
                "## {}\n\n{}\n{}\n{}",
                g.name,
                g.raw().to_markdown(),
                g.note(),
                on_one_scale(g)
            )
        };
        self.groups.iter().map(group).collect::<Vec<_>>().join("\n")
    }

    /// The page: HTML with its style and charts inside, without links to other files.
    pub fn to_html(&self) -> String {
        let header = format!(
            "<header>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n",
            escape(self.title),
            escape(self.subtitle)
        );
        let body: String = self
            .groups
            .iter()
            .map(|g| section(&g.name, &g.html()))
            .collect();
        document(self.title, &header, &body)
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{} ms", significant(1000.0 * seconds, 3))
}

fn on_one_scale(group: &SystemGroup) -> String {
    let table = group.scaled().to_markdown();
    if table.is_empty() {
        table
    } else {
        format!(
            "\nOn one scale, from 1 for the best of the compared to 0 for the worst, or for a tenth off the best if all are closer:\n\n{table}"
        )
    }
}

impl SystemGroup {
    /// The measures with their units.
    fn raw(&self) -> Rows {
        let (latency, throughput) = match self.work {
            Work::Pretrain => ("latency of a step", "tokens / parameter / s"),
            Work::Tune => ("latency of a step", "samples / parameter / s"),
            Work::Eval => ("latency of a token", "generated tokens / s"),
        };
        let modelled = self.systems.iter().any(|s| s.power_is_modelled);
        let (power, energy) = if modelled {
            ("power, modelled", "energy / token, modelled")
        } else {
            ("power", "energy / token")
        };
        let size = if self.work == Work::Tune {
            "file"
        } else {
            "weights"
        };
        let bytes = |v: f64| human::bytes(v as u64);
        let small = |v: f64| {
            if v < 1e-3 {
                format!("{v:.2e}")
            } else {
                significant(v, 3)
            }
        };
        type Column<'a> = (
            &'a str,
            fn(&System) -> Option<f64>,
            &'a dyn Fn(f64) -> String,
        );
        let columns: [Column<'_>; 15] = [
            ("parameters", |s| s.parameters, &|v| human::count(v as u64)),
            ("perplexity", |s| s.perplexity, &score),
            ("average memory", |s| s.average_memory, &bytes),
            ("peak memory", |s| s.peak_memory, &bytes),
            ("utilisation", |s| s.utilisation, &|v| {
                format!("{:.1} %", 100.0 * v)
            }),
            ("FLOP utilisation", |s| s.flop_utilisation, &|v| {
                format!("{:.1} %", 100.0 * v)
            }),
            (latency, |s| s.latency, &milliseconds),
            (throughput, |s| s.throughput, &small),
            ("tokens / s", |s| s.tokens_per_second, &|v| {
                human::count(v.round() as u64)
            }),
            (power, |s| s.power, &|v| format!("{v:.1} W")),
            (energy, |s| s.energy_per_token, &|v| {
                format!("{} mJ", significant(1000.0 * v, 3))
            }),
            (size, |s| s.size, &bytes),
            ("compression", |s| s.compression, &|v| significant(v, 4)),
            ("cache / token", |s| s.cache_bytes_per_token, &bytes),
            ("generation / token", |s| s.decode_latency, &milliseconds),
        ];
        let known = columns.into_iter().filter(|(heading, value, _)| {
            // In an evaluation these two say the same as latency and throughput.
            let again =
                self.work == Work::Eval && ["tokens / s", "generation / token"].contains(heading);
            !again && self.systems.iter().any(|s| value(s).is_some())
        });
        let known: Vec<Column<'_>> = known.collect();
        let row = |s: &System| {
            let cells = known
                .iter()
                .map(|(_, value, text)| value(s).map_or("-".into(), text));
            std::iter::once(s.name.clone()).chain(cells).collect()
        };
        let headings = std::iter::once("run").chain(known.iter().map(|(heading, ..)| *heading));
        Rows::new(headings, self.systems.iter().map(row).collect())
    }

    /// The measures from 0 to 1.
    fn scaled(&self) -> Rows {
        let measures = scaled(&self.systems);
        if self.systems.len() < 2 || measures.is_empty() {
            return Rows::new([], Vec::new());
        }
        let row = |(i, s): (usize, &System)| {
            let cells = measures
                .iter()
                .map(|m| m.values[i].map_or("-".into(), |v| format!("{v:.2}")));
            std::iter::once(s.name.clone()).chain(cells).collect()
        };
        Rows::new(
            std::iter::once("run").chain(measures.iter().map(|m| m.name)),
            self.systems.iter().enumerate().map(row).collect(),
        )
    }

    fn note(&self) -> String {
        let sampled = match self.work {
            Work::Eval => {
                "Memory, utilisation and power are those of a program that reads the model and generates"
            }
            _ => {
                "Memory, utilisation and power are those of the whole program, tokenizer, evaluation and saving included"
            }
        };
        let power = if self.systems.iter().any(|s| s.power_is_modelled) {
            "; power is modelled from utilisation, not measured"
        } else {
            ""
        };
        let compression = format!(
            "Compression is by size and inverse perplexity against {}.",
            self.baseline
        );
        format!("{sampled}{power}. {compression}\n")
    }

    fn html(&self) -> String {
        let names: Vec<&str> = self.systems.iter().map(|s| s.name.as_str()).collect();
        let axes: Vec<Axis> = scaled(&self.systems)
            .into_iter()
            .map(|m| Axis {
                name: m.name.to_owned(),
                values: m.values,
            })
            .collect();
        let failures: String = self
            .systems
            .iter()
            .flat_map(|s| {
                s.errors
                    .iter()
                    .map(|e| format!("<p><b>{}</b> {}</p>\n", escape(&s.name), escape(e)))
            })
            .collect();
        let parts = [
            self.raw().to_html(self.note().trim_end()),
            radar::figure(&axes, &names, "All measures of the group"),
            self.scaled()
                .to_html("Each measure from 1 for the best of the compared to 0 for the worst, or for a tenth off the best if all are closer."),
        ];
        parts.concat() + &failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<SystemGroup> {
        let system = |name: &str, i: f64| System {
            name: name.into(),
            runs: 1,
            parameters: Some(1e6),
            perplexity: Some(20.0 + i),
            average_memory: Some(1e8 * (1.0 + i)),
            utilisation: Some(0.5),
            latency: Some(0.02 * (1.0 + i)),
            throughput: Some(4e-4),
            power: Some(30.0),
            power_is_modelled: true,
            cache_bytes_per_token: Some(512.0 * (1.0 + i)),
            ..System::default()
        };
        let mut systems = vec![system("mha", 1.0), system("m<qa", 0.0)];
        systems[1].errors.push("out of <memory>".into());
        vec![SystemGroup {
            name: "Attention".into(),
            work: Work::Pretrain,
            baseline: "mha".into(),
            systems,
        }]
    }

    #[test]
    fn the_page_shows_raw_and_scaled_measures_and_a_radar() {
        let groups = groups();
        let report = EfficiencyReport {
            title: "A & B",
            subtitle: "tiny",
            groups: &groups,
        };
        let html = report.to_html();
        // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
        if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
            std::fs::write(path, &html).unwrap();
        }
        for text in [
            "A &amp; B",
            "m&lt;qa",
            "out of &lt;memory&gt;",
            "power, modelled",
            "40.0 ms",
            "4.00e-4",
            ">0.00<",
            ">1.00<",
        ] {
            assert!(html.contains(text), "the page lacks {text}");
        }
        // Seven measures are there, so the rim has seven corners; the other columns are left out.
        assert!(
            html.contains("<figure>")
                && !html.contains("compression<")
                && !html.contains("peak memory"),
            "{html}"
        );
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        for reference in ["http:", "https:", "<link", "url(", "src=", "NaN"] {
            assert!(
                !outside.contains(reference),
                "the page refers to {reference}"
            );
        }
    }

    #[test]
    fn the_markdown_has_both_tables() {
        let groups = groups();
        let text = EfficiencyReport {
            title: "",
            subtitle: "",
            groups: &groups,
        }
        .to_markdown();
        assert!(
            text.starts_with("## Attention\n\n| run | parameters | perplexity | average memory | utilisation | latency of a step |"),
            "{text}"
        );
        assert!(
            text.contains(
                "| run | quality | memory | utilisation | latency | throughput | power, modelled | cache |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| mha | 0.50 | 0.00 | 1.00 | 0.00 | 1.00 | 1.00 | 0.00 |"),
            "{text}"
        );
    }
}
