//! A grid of pre-training runs on one page: the laws fitted to it, the sizes, the loss surface of
//! each.

use plotters::style::RGBColor;

use super::colour;
use super::markup::{document, escape, hex, section, wrapped};
use super::rows::Rows;
use super::surface::{Shape, Spot, Surface, Tile, mark};
use crate::step_law::{Bowl, Cell, Fit, Law, Measured, STEP_LAW, Study, deviation_text};
use frugal_core::human::{count, significant};

/// A study with its heading.
pub struct LawReport<'a> {
    /// Heading of the page.
    pub title: &'a str,
    /// One line below it.
    pub subtitle: &'a str,
    /// The runs and what they say.
    pub study: &'a Study,
    /// Names and reasons of runs that failed.
    pub failures: &'a [(String, String)],
}

/// Standard deviations of the published coefficients over the 1,000 fits that its authors released,
/// in the order of [`Law`].
const PUBLISHED_DEVIATIONS: [f64; 5] = [0.623, 0.0298, 0.0191, 0.437, 0.0187];
/// Heights above a bowl's bottom at which lines are drawn, as shares of the loss there.
const LINES: [f64; 3] = [0.01, 0.02, 0.05];

type Place = Box<dyn Fn(&Cell) -> Option<(f64, f64)>>;

/// A place in each chart.
struct Mark {
    name: &'static str,
    shape: Shape,
    colour: RGBColor,
    place: Place,
}

impl LawReport<'_> {
    /// The tables in Markdown.
    pub fn to_markdown(&self) -> String {
        let warning = self
            .study
            .edges
            .warning()
            .map_or_else(String::new, |w| format!("Warning: {w}.\n\n"));
        let parts = [
            ("Laws", self.laws()),
            ("Sizes", self.sizes()),
            ("Configurations beside the grid", self.compared()),
        ];
        let part = |(heading, rows): (&str, Rows)| {
            let table = rows.to_markdown();
            (!table.is_empty()).then(|| format!("## {heading}\n\n{table}"))
        };
        let tables: Vec<String> = parts.into_iter().filter_map(part).collect();
        warning + &tables.join("\n")
    }

    /// The page: HTML with its style and charts inside, without links to other files.
    pub fn to_html(&self) -> String {
        let warning = self.study.edges.warning().map_or_else(String::new, |w| {
            format!("<p class=\"warning\">Warning: {}.</p>\n", escape(&w))
        });
        let header = format!(
            "<header>\n<h1>{}</h1>\n<p>{}</p>\n{warning}</header>\n",
            escape(self.title),
            escape(self.subtitle)
        );
        let near = format!(
            "The first law goes through the runs within {} % of the best of their size; the second through the bottoms of the bowls that lie \
             within the grid. Behind \u{b1}: one standard deviation over bootstrap samples.",
            (1e4 * self.study.excess).round() / 100.0
        );
        let failures: String = self
            .failures
            .iter()
            .map(|(name, why)| format!("<p><b>{}</b> {}</p>\n", escape(name), escape(why)))
            .collect();
        let body = [
            section("Laws", &self.laws().to_html(&near)),
            section(
                "Configurations beside the grid",
                &self
                    .compared()
                    .to_html("Loss above the best run of the grid of the same size."),
            ),
            section("Loss over rate and batch", &self.surfaces()),
            section(
                "Sizes",
                &self
                    .sizes()
                    .to_html("Parameters are those outside the vocabulary."),
            ),
            section("Failures", &failures),
        ];
        document(self.title, &header, &body.concat())
    }

    fn laws(&self) -> Rows {
        let headings = [
            "Law",
            "Rate: factor",
            "exponent of parameters",
            "exponent of tokens",
            "Batch: factor",
            "exponent of tokens",
            "from",
        ];
        let row = |name: &str, law: &Law, deviations: &[f64; 5], from: String| {
            let exponent = |value: f64, i: usize| {
                let value = format!("{value:.3}").replace('-', "\u{2212}");
                format!("{value} \u{b1} {}", deviation_text(deviations[i]))
            };
            // The deviation is that of the logarithm.
            let factor = |value: f64, i: usize| {
                format!(
                    "{} \u{d7}/\u{f7} {}",
                    significant(value, 3),
                    significant(deviations[i].exp(), 3)
                )
            };
            vec![
                name.to_owned(),
                factor(law.rate_scale, 0),
                exponent(law.rate_parameters, 1),
                exponent(law.rate_tokens, 2),
                factor(law.batch_scale, 3),
                exponent(law.batch_tokens, 4),
                from,
            ]
        };
        let own = |name: &str, fit: &Option<Fit>, what: &str| {
            fit.map(|f| row(name, &f.law, &f.deviations, format!("{} {what}", f.kept)))
        };
        let published = row(
            "published Step Law",
            &STEP_LAW,
            &PUBLISHED_DEVIATIONS,
            "3,700 runs".into(),
        );
        let rows = [
            own("runs near the best", &self.study.fit, "runs"),
            own("bottoms of bowls", &self.study.bowls, "sizes"),
            Some(published),
        ];
        Rows::new(headings, rows.into_iter().flatten().collect())
    }

    fn sizes(&self) -> Rows {
        let headings = [
            "Parameters",
            "Tokens",
            "Runs",
            "near the best",
            "Best loss",
            "at rate",
            "and batch",
            "Bowl: rate",
            "batch",
            "loss",
            "Step Law: rate",
            "batch",
        ];
        let row = |c: &Cell| {
            let bowl = |value: &dyn Fn(&Bowl) -> String| match &c.bowl {
                Some(b) if b.inside => value(b),
                Some(b) => format!("({})", value(b)),
                None => "no bottom".into(),
            };
            vec![
                whole(c.parameters),
                whole(c.tokens),
                c.runs.to_string(),
                c.near.to_string(),
                format!("{:.4}", c.best.loss),
                significant(c.best.rate, 3),
                whole(c.best.batch),
                bowl(&|b| significant(b.rate, 3)),
                bowl(&|b| whole(b.batch)),
                bowl(&|b| format!("{:.4}", b.loss)),
                significant(STEP_LAW.rate(c.parameters, c.tokens), 3),
                whole(STEP_LAW.batch(c.tokens)),
            ]
        };
        Rows::new(headings, self.study.cells.iter().map(row).collect())
    }

    fn compared(&self) -> Rows {
        let mut headings: Vec<String> = ["Configuration", "mean excess", "worst"]
            .map(str::to_owned)
            .to_vec();
        let sizes: Vec<(f64, f64)> = self
            .study
            .cells
            .iter()
            .map(|c| (c.parameters, c.tokens))
            .collect();
        headings.extend(
            sizes
                .iter()
                .map(|(n, d)| format!("{}, {}", short(*n), short(*d))),
        );
        let percent = |v: f64| format!("{:.2} %", 100.0 * v).replace('-', "\u{2212}");
        let rows = self.study.compared.iter().map(|c| {
            let of = |size: &(f64, f64)| {
                c.excess
                    .iter()
                    .find(|e| (e.0, e.1) == *size)
                    .map_or("-".into(), |e| percent(e.2))
            };
            [c.name.clone(), percent(c.mean), percent(c.worst)]
                .into_iter()
                .chain(sizes.iter().map(of))
                .collect()
        });
        Rows {
            headings,
            rows: rows.collect(),
        }
    }

    /// Marks that every chart shares.
    fn marks(&self) -> Vec<Mark> {
        let by = |law: Law| {
            move |c: &Cell| Some((law.rate(c.parameters, c.tokens), law.batch(c.tokens)))
        };
        let mark = |name, shape, colour, place| Mark {
            name,
            shape,
            colour,
            place,
        };
        let mut marks = vec![
            mark(
                "best run",
                Shape::Circle,
                colour::VALIDATION,
                Box::new(|c: &Cell| Some((c.best.rate, c.best.batch))) as Place,
            ),
            mark(
                "bottom of the bowl",
                Shape::Square,
                colour::SPEED,
                Box::new(|c: &Cell| c.bowl.map(|b| (b.rate, b.batch))),
            ),
        ];
        if let Some(fit) = self.study.bowls.or(self.study.fit) {
            marks.push(mark(
                "law fitted here",
                Shape::Triangle,
                colour::RATE,
                Box::new(by(fit.law)),
            ));
        }
        marks.push(mark(
            "published Step Law",
            Shape::Diamond,
            colour::MEMORY,
            Box::new(by(STEP_LAW)),
        ));
        marks
    }

    fn surfaces(&self) -> String {
        let marks = self.marks();
        let figure = |cell: &Cell| -> Option<String> {
            let runs = self.study.runs.iter().filter(|m| m.point.beside.is_none());
            let here = runs
                .filter(|m| m.point.parameters == cell.parameters && m.point.tokens == cell.tokens);
            let tile = |m: &Measured| Tile {
                x: m.point.rate,
                y: m.point.batch,
                value: m.loss,
                text: format!("{:.3}", m.loss),
            };
            let line = |b: Bowl| {
                LINES
                    .map(|share| {
                        b.ellipse(share * b.loss, 72)
                            .into_iter()
                            .map(|(x, y)| (x.exp(), y.exp()))
                            .collect()
                    })
                    .to_vec()
            };
            let spot = |m: &Mark| {
                (m.place)(cell).map(|(x, y)| Spot {
                    x,
                    y,
                    shape: m.shape,
                    colour: m.colour,
                })
            };
            let surface = Surface {
                x_label: "Peak learning rate",
                y_label: "Tokens of a step",
                tiles: here.map(tile).collect(),
                contours: cell.bowl.map(line).unwrap_or_default(),
                spots: marks.iter().filter_map(spot).collect(),
            };
            let title = format!(
                "{} parameters, {} tokens",
                whole(cell.parameters),
                whole(cell.tokens)
            );
            let svg = surface.svg()?.replacen(
                "<svg ",
                &format!("<svg role=\"img\" aria-label=\"Loss of {title}\" "),
                1,
            );
            Some(format!(
                "<figure><figcaption><h3>{title}</h3></figcaption><div class=\"chart\">{svg}</div></figure>\n"
            ))
        };
        let figures: String = self.study.cells.iter().filter_map(figure).collect();
        if figures.is_empty() {
            return figures;
        }
        let key = |m: &Mark| {
            let drawn = mark(m.shape, 6.0, 6.0, 5.0, &hex(m.colour));
            format!(
                "<li><svg width=\"12\" height=\"12\" viewBox=\"0 0 12 12\" aria-hidden=\"true\">{drawn}</svg>{}</li>",
                m.name
            )
        };
        let legend: String = marks.iter().map(key).collect();
        format!(
            "<ul class=\"legend\">{legend}</ul>\n{}<p class=\"note\">Numbers are losses on held-out text, darker is lower. Dashed: the fitted \
             bowl at 1, 2 and 5 % above its bottom.</p>\n",
            wrapped("charts", &figures)
        )
    }
}

fn whole(value: f64) -> String {
    count(value.round() as u64)
}

/// `25088` as `25k`.
fn short(value: f64) -> String {
    let (scaled, unit) = if value >= 1e9 {
        (value / 1e9, "G")
    } else if value >= 1e6 {
        (value / 1e6, "M")
    } else {
        (value / 1e3, "k")
    };
    format!("{}{unit}", significant(scaled, 3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Point;

    fn study() -> Study {
        let mut runs = Vec::new();
        for parameters in [25_088.0, 100_352.0] {
            for tokens in [1e5, 4e5] {
                let (rate, batch) = (STEP_LAW.rate(parameters, tokens), STEP_LAW.batch(tokens));
                let mut add = |at: (f64, f64), beside: Option<&str>| {
                    let (x, y) = ((at.0 / rate).ln(), (at.1 / batch).ln());
                    let point = Point {
                        parameters,
                        tokens,
                        rate: at.0,
                        batch: at.1,
                        beside: beside.map(str::to_owned),
                    };
                    runs.push(Measured {
                        name: String::new(),
                        point,
                        loss: 4.0 + 0.05 * x * x + 0.02 * y * y,
                        seeds: 1,
                    });
                };
                for r in [0.005, 0.01, 0.02, 0.04, 0.08] {
                    [128.0, 512.0, 2048.0]
                        .into_iter()
                        .for_each(|b| add((r, b), None));
                }
                add((3e-4, 1024.0), Some("con<stant"));
            }
        }
        Study::new(runs, 0.0025)
    }

    #[test]
    fn the_page_shows_laws_sizes_and_surfaces() {
        let study = study();
        let failures = [("h1".to_owned(), "out of <memory>".to_owned())];
        let report = LawReport {
            title: "A & B",
            subtitle: "tiny",
            study: &study,
            failures: &failures,
        };
        let html = report.to_html();
        // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
        if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
            std::fs::write(path, &html).unwrap();
        }
        for text in [
            "A &amp; B",
            "con&lt;stant",
            "out of &lt;memory&gt;",
            "25,088 parameters, 400,000 tokens",
            "\u{2212}0.713 \u{b1} 0.030",
        ] {
            assert!(html.contains(text), "the page lacks {text}");
        }
        assert_eq!(
            (
                html.matches("<figure>").count(),
                html.matches("<polygon").count()
            ),
            (4, 4 * (3 + 3) + 3)
        );
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        for reference in ["http:", "https:", "<link", "@import", "url(", "src=", "NaN"] {
            assert!(
                !outside.contains(reference),
                "the page refers to {reference}"
            );
        }
    }

    #[test]
    fn the_tables_are_in_markdown_too() {
        let study = study();
        let text = LawReport {
            title: "",
            subtitle: "",
            study: &study,
            failures: &[],
        }
        .to_markdown();
        // The bowls were made with the published law.
        assert!(
            text.contains("| bottoms of bowls | 1.79 \u{d7}/\u{f7} 1.00 | \u{2212}0.713 \u{b1} - | 0.307 \u{b1} - |"),
            "{text}"
        );
        assert!(text.contains("| published Step Law | 1.79 \u{d7}/\u{f7} 1.86 | \u{2212}0.713 \u{b1} 0.030 | 0.307 \u{b1} 0.019 | 0.580 \u{d7}/\u{f7} 1.55 | 0.571 \u{b1} 0.019 | 3,700 runs |"), "{text}");
        assert!(
            text.contains("25.1k, 100k")
                && text.matches("\n| 25,088 | 100,000 | 15 |").count() == 1,
            "{text}"
        );
    }
}
