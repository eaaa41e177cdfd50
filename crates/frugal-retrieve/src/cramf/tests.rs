use super::*;

fn definition(name: &str, module: &str, doc: &str) -> Definition {
    Definition {
        name: name.into(),
        kind: "def".into(),
        module: module.into(),
        signature: format!("{name} (x : X)"),
        doc: doc.into(),
    }
}

fn base() -> KnowledgeBase {
    let definitions = vec![
        definition(
            "metric.ball",
            "topology/metric_space.lean",
            "The open ball of points closer than a radius.",
        ),
        definition(
            "topology.neighborhood",
            "topology/basic.lean",
            "A set that contains an open set around a point.",
        ),
        definition(
            "graph.neighborhood",
            "combinatorics/graph.lean",
            "The vertices joined to a vertex of a graph by an edge.",
        ),
        definition(
            "is_compact",
            "topology/compact.lean",
            "Every open cover has a finite subcover.",
        ),
        definition(
            "polynomial.degree",
            "algebra/polynomial.lean",
            "The degree of a polynomial is its largest exponent.",
        ),
        definition(
            "graph.degree",
            "combinatorics/graph.lean",
            "The number of edges at a vertex of a graph.",
        ),
        definition("group.order", "group_theory/order.lean", ""),
    ];
    KnowledgeBase::new("3.1", definitions).unwrap().0
}

/// Counts words, each in a place of its own by its letters.
struct Letters;

impl TextEncoder for Letters {
    fn vectors(&self, texts: &[&str]) -> Result<(Vec<f32>, usize), CramfError> {
        const WIDTH: usize = 256;
        let mut all = Vec::new();
        for text in texts {
            let mut row = vec![0.0f32; WIDTH];
            for term in frugal_index::Analyzer::English.terms(text) {
                let place = term
                    .bytes()
                    .fold(7usize, |sum, b| (31 * sum + usize::from(b)) % WIDTH);
                row[place] += 1.0;
            }
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-9);
            all.extend(row.iter().map(|v| v / length));
        }
        Ok((all, WIDTH))
    }
}

/// Runs with all parts of the knowledge base above.
fn with_cramf<T>(base: &KnowledgeBase, augmented: bool, use_it: impl FnOnce(Cramf<'_>) -> T) -> T {
    let mut extractor = DictionaryExtractor::new(base);
    extractor.min_idf = 0.5;
    let context = ContextAugmenter::new(base);
    let symbols = SymbolChannel::new(base);
    let semantic = VectorChannel::new(base, &Letters, &mut |_| true).unwrap();
    let reranker = CosineReranker(&Letters);
    use_it(Cramf {
        base,
        extractor: Some(&extractor),
        augmenter: if augmented { &context } else { &ConceptAlone },
        symbols: &symbols,
        semantic: &semantic,
        reranker: Some(&reranker),
        options: CramfOptions::default(),
    })
}

fn ids(ranking: &[(u32, f64)]) -> Vec<u32> {
    ranking.iter().map(|(id, _)| *id).collect()
}

#[test]
fn every_definition_has_one_description_and_a_name_of_two_meanings_has_two() {
    let base = base();
    assert!(base.definitions().iter().all(|d| !d.doc.is_empty()));
    let texts: std::collections::HashSet<String> =
        base.definitions().iter().map(|d| d.text()).collect();
    assert_eq!(texts.len(), base.definitions().len());
    assert!(base.concepts().values().all(|found| !found.is_empty()));
    assert_eq!(base.concepts()["degre"], [4, 5]);
    assert_eq!(base.concepts()["neighborhood"], [1, 2]);
    // Its words describe what has no description.
    assert_eq!(base.definitions()[6].doc, "group order");
}

#[test]
fn a_knowledge_base_comes_back_from_its_file_and_a_bad_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kb.jsonl");
    base().save(&path).unwrap();
    assert_eq!(KnowledgeBase::open(&path).unwrap(), (base(), Vec::new()));
    std::fs::write(&path, "{\"library_version\": \"1\"}\n{\"name\": \"a\"}\n").unwrap();
    let message = KnowledgeBase::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("kb.jsonl:2") && message.contains("signature"),
        "{message}"
    );
    for (text, expected) in [("", "empty"), ("{\"name\": 1}\n", "library_version")] {
        std::fs::write(&path, text).unwrap();
        let message = KnowledgeBase::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_name_that_comes_twice_in_a_module_counts_once_and_is_told() {
    let twice = vec![
        definition("a.b", "m", "one"),
        definition("a.b", "m", "two"),
        definition("a.b", "n", "three"),
    ];
    let (base, repeated) = KnowledgeBase::new("1", twice).unwrap();
    assert_eq!(base.definitions().len(), 2);
    assert_eq!(base.named("A.B"), [0, 1]);
    assert_eq!(repeated.len(), 1);
    let nameless = KnowledgeBase::new("1", vec![definition("..", "m", "x")]);
    assert!(nameless.unwrap_err().to_string().contains("has no name"));
    assert!(KnowledgeBase::new("1", Vec::new()).is_err());
}

#[test]
fn a_checker_of_another_version_is_refused() {
    let base = base();
    let message = NameChecker::new(&base, "4.0", &[]).err().unwrap();
    let message = message.to_string();
    assert!(
        message.contains("3.1") && message.contains("4.0"),
        "{message}"
    );
    let checker = NameChecker::new(&base, "3.1", &["theorem"]).unwrap();
    let report = checker
        .check("theorem x : IsCompact s ∧ graph.degree v = made.up + degree")
        .unwrap();
    assert_eq!((report.names, report.valid), (4, 3));
    assert_eq!(report.validity(), Some(0.75));
    assert_eq!(checker.check("x + 1").unwrap().validity(), None);
}

#[test]
fn a_full_name_finds_itself_first_and_signs_of_patterns_are_letters() {
    let mut definitions = base().definitions().to_vec();
    definitions.push(definition("order.group", "m", "The other way round."));
    definitions.push(definition("f.a+b(c)", "m", "Signs."));
    let (base, _) = KnowledgeBase::new("1", definitions).unwrap();
    let channel = SymbolChannel::new(&base);
    for (index, definition) in (0u32..).zip(base.definitions()) {
        let found = channel.search(&definition.name, 3);
        assert_eq!(found[0], (index, 1.0), "{}", definition.name);
    }
    // One word of two.
    let found = channel.search("degrees", 5);
    assert_eq!(found, [(4, 0.5), (5, 0.5)]);
    assert!(channel.matching("f.a+b(", 3).is_err());
    assert_eq!(
        channel.matching(&regex::escape("f.a+b(c)"), 3).unwrap(),
        [8]
    );
    let pattern = SymbolChannel::pattern_of("is compact");
    assert_eq!(channel.matching(&pattern, 3).unwrap(), [3]);
}

#[test]
fn ranks_are_joined_by_the_worked_values_in_any_order_of_the_channels() {
    use frugal_index::{Fusion, fuse};
    let (a, b) = (vec![(1, 5.0), (2, 4.0)], vec![(2, 0.9), (1, 0.1)]);
    let found = fuse(&[a.clone(), b.clone()], &Fusion::default()).unwrap();
    assert!((found[0].1 - 0.032_522_5).abs() < 1e-7);
    assert_eq!(found, fuse(&[b, a], &Fusion::default()).unwrap());
    let alone = fuse(&[vec![(1, 5.0)]], &Fusion::default()).unwrap();
    assert!((alone[0].1 - 0.016_393_4).abs() < 1e-7);
}

const STATEMENT: &str = "Let $G$ be a graph with edges. Show that the sum of the degree over all \
    vertices is twice the number of edges.";

#[test]
fn what_is_joined_has_no_doubles_and_what_is_chosen_is_of_it() {
    let base = base();
    with_cramf(&base, true, |cramf| {
        let found = cramf.retrieve(STATEMENT).unwrap();
        assert!(!found.concepts.is_empty());
        for result in &found.concepts {
            let merged = ids(&result.merged);
            let mut unique = merged.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), merged.len());
            assert!(merged.len() <= result.symbols.len() + 5);
            assert!(result.chosen.len() <= 3);
            assert!(ids(&result.chosen).iter().all(|id| merged.contains(id)));
        }
        assert!(found.definitions.len() <= 8);
        let empty = cramf.retrieve(" $ ").unwrap();
        assert!(empty.definitions.is_empty());
    });
}

#[test]
fn the_context_decides_which_degree_is_meant() {
    let base = base();
    let first = |augmented: bool, text: &str| {
        with_cramf(&base, augmented, |cramf| {
            let found = cramf.retrieve(text).unwrap();
            let degree = found.concepts.iter().find(|r| r.concept.name == "degree");
            ids(&degree.unwrap().chosen)[0]
        })
    };
    assert_eq!(first(true, STATEMENT), 5);
    let other =
        "The degree of a product of polynomials, each with its exponent, is the sum of both.";
    assert_eq!(first(true, other), 4);
    // Without its context, both statements ask the same.
    assert_eq!(first(false, STATEMENT), first(false, other));
}

#[test]
fn without_names_the_joined_order_is_that_of_the_descriptions() {
    let base = base();
    with_cramf(&base, true, |cramf| {
        let options = CramfOptions {
            channels: Channels::Semantic,
            ..cramf.options
        };
        let cramf = Cramf {
            options,
            reranker: None,
            ..cramf
        };
        for result in cramf.retrieve(STATEMENT).unwrap().concepts {
            assert_eq!(ids(&result.merged), ids(&result.semantic));
            assert!(result.symbols.is_empty());
        }
    });
}

#[test]
fn a_concept_alone_is_its_own_query() {
    let base = base();
    with_cramf(&base, false, |cramf| {
        for result in cramf.retrieve(STATEMENT).unwrap().concepts {
            assert_eq!(result.query, result.concept.name);
        }
    });
}

#[test]
fn both_channels_hold_what_each_finds() {
    let base = base();
    with_cramf(&base, true, |cramf| {
        for result in cramf.retrieve(STATEMENT).unwrap().concepts {
            let merged = ids(&result.merged);
            let both = ids(&result.symbols)
                .into_iter()
                .chain(ids(&result.semantic));
            both.for_each(|id| assert!(merged.contains(&id)));
        }
    });
}

#[test]
fn a_masked_text_gives_its_name_away_in_no_spelling() {
    let text = "Use IsCompact or is_compact, is compact and is-compact; `topology.is_compact` too. IsCompactly";
    assert!(leaks(text, "topology.is_compact"));
    let masked = mask(text, "topology.is_compact");
    assert!(!leaks(&masked, "topology.is_compact"), "{masked}");
    assert!(
        !masked
            .to_lowercase()
            .replace([' ', '_'], "")
            .contains("iscompact"),
        "{masked}"
    );
    assert!(!leaks("compact spaces", "topology.is_compact"));
    assert_eq!(mask("a+b", "f.q"), "a+b");
}

#[test]
fn a_prompt_cuts_signatures_and_never_names() {
    let long = Definition {
        signature: format!("very.long_name {}", "x ".repeat(400)),
        ..definition("very.long_name", "m", "First. Second.")
    };
    let text = prompt("Show it.", &[&long], "Code:", PromptOptions::default());
    assert!(text.starts_with("Definitions of the library:\n- very.long_name x x"));
    assert!(text.contains("...: First\nShow it.\nCode:"), "{text}");
    assert!(text.len() < 300);
    assert_eq!(
        prompt("Show it.", &[], "Code:", PromptOptions::default()),
        "Show it.\nCode:"
    );
}

#[test]
fn any_of_the_samples_and_the_share_of_them_are_two_numbers() {
    let samples = [vec![true, false], vec![false, false], vec![true, true]];
    let (any, share) = any_and_share(&samples).unwrap();
    assert!((any - 2.0 / 3.0).abs() < 1e-12 && (share - 0.5).abs() < 1e-12);
    assert!(any_and_share(&[]).is_none());
}

#[test]
fn marks_of_formulas_are_no_words() {
    let statement = Statement::new(r"Let $f:\mathbb{R}\to X$. Then $\sin(x_1) \leq \frac{1}{2}$.");
    assert!(!statement.text().contains("mathbb"));
    assert!(!statement.text().contains("frac"));
    assert!(statement.text().contains("sin"));
}

#[test]
fn a_reranker_that_forgets_a_text_is_found_out() {
    struct Short;
    impl DefinitionReranker for Short {
        fn scores(&self, _: &str, _: &[&str]) -> Result<Vec<f64>, CramfError> {
            Ok(vec![1.0])
        }
    }
    let base = base();
    with_cramf(&base, true, |cramf| {
        let cramf = Cramf {
            reranker: Some(&Short),
            ..cramf
        };
        let message = cramf.retrieve(STATEMENT).unwrap_err().to_string();
        assert!(message.contains("1 scores"), "{message}");
    });
}
