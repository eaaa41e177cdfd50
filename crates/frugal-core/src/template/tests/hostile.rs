//! Templates that were made to do harm, and a sweep of damaged ones: each ends with a text or an
//! error, within 10 seconds and 2 GiB.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::test_limits::used_time;

const LONGEST: Duration = Duration::from_secs(10);
const MEMORY: u64 = 2 << 30;

/// Most memory that this process has held.
fn peak() -> u64 {
    crate::events::peak_rss_bytes().unwrap_or(0)
}

/// Compiles and renders; the text or the error, and how long it took.
fn outcome(source: &str) -> Result<usize, String> {
    let start = Instant::now();
    let before = used_time(start);
    let messages = [
        Message::new("system", "Be terse."),
        Message::new("user", "What is 2+2?"),
        Message::new("assistant", "4"),
    ];
    let result = ChatTemplate::new(source, &settings())
        .and_then(|template| template.render(&messages, true))
        .map(|text| text.len())
        .map_err(|e| e.to_string());
    let shown: String = source.chars().take(200).collect();
    let took = used_time(start).saturating_sub(before);
    assert!(took < LONGEST, "{took:?}: {shown}");
    assert!(peak() < MEMORY, "{} bytes: {shown}", peak());
    result
}

#[test]
fn loops_without_end_and_texts_that_grow_are_errors() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('a', 'aaaaaaaa') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', 'aaaaaaaa') %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join('x') %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s | tojson ~ ns.s | tojson %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s={'a': 1}) %}{% for i in range(60) %}{% set ns.s = {'a': ns.s, 'b': ns.s} %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | string | length }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 9999999999 }}",
        "{{ [0] * 9999999999 }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ messages | tojson(indent=99999999999999999999) }}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ] {
        assert!(outcome(source).is_err(), "{source}");
    }
}

/// Lists that hold each other twice are small in memory and endless wherever they are walked:
/// comparisons, texts, keys and errors took all time or memory, and what holds itself the stack.
#[test]
fn values_that_share_their_parts_are_bounded_wherever_they_are_walked() {
    let doubled = "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}";
    for walk in [
        "ns.s == ns.t",
        "ns.s in [ns.t]",
        "ns.s ~ ''",
        "{ns.s: 1}",
        "ns.s | pprint",
        "ns.s | upper",
        "ns.s | trim",
        "ns.s | replace('a', 'b')",
        "[ns.s, ns.t] | sort",
        "[1].index(ns.s)",
        "'{}'.format(ns.s)",
        "'%s' | format(ns.s)",
        "','.join([ns.s])",
        "raise_exception(ns.s)",
    ] {
        let source = format!("{doubled}{{{{ {walk} }}}}");
        assert!(outcome(&source).is_err(), "{source}");
    }
    for source in [
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | last }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s ~ [ns.s, ns.s] %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s] * 2 %}{% endfor %}{{ ns.s == 1 }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns ~ '' }}",
        "{% set ns = namespace() %}{% set ns.a = [{'a': ns}] %}{{ ns ~ '' }}",
        // Without a namespace.
        "{% macro m(a, b, n) %}{% if n %}{{ m([a, a], [b, b], n - 1) }}{% else %}{{ a == b }}{% endif %}{% endmacro %}{{ m(1, 1, 60) }}",
        "{% macro m(a, n) %}{% if n %}{{ m([a, a], n - 1) }}{% else %}{{ a ~ '' }}{% endif %}{% endmacro %}{{ m(1, 60) }}",
    ] {
        assert!(outcome(source).is_err(), "{source}");
    }
    // What is constant is computed when the template is compiled.
    let _ = outcome("{{ ([[[[1] * 1000] * 1000] * 1000] * 1000) ~ '' }}");
}

/// Lists that grow by a turn each are what templates use namespaces for.
#[test]
fn lists_that_grow_turn_by_turn_are_left_alone() {
    let source = "{% set ns = namespace(s=[], t='') %}{% for i in range(500) %}{% for m in messages %}{% set ns.s = ns.s + [m] %}{% endfor %}{% endfor %}{% set ns.t = ns.s[0].content, ns.s | length %}{{ ns.t[0] }} {{ ns.t[1] }}";
    assert_eq!(outcome(source), Ok("Be terse. 1500".len()));
}

#[test]
fn huge_widths_are_bounded() {
    for source in [
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%1000000000s' | format('x') }}",
        "{{ '%.1000000000f' | format(1.5) }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ 'a\nb' | indent(10000000000) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ range(9999999999999) | list | length }}",
        "{{ range(9999999999999) | join('x') }}",
        "{{ range(99999999) | list | tojson | length }}",
        "{{ messages | batch(9999999999) | list }}",
        "{{ messages | batch(2, 'x') | list }}",
        "{{ messages | slice(9999999999) | list }}",
        "{{ strftime_now('%Y' * 1000000) | length }}",
        "{{ lipsum(n=100000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | length }}",
        "{{ ''.join(['b' * 1000000] * 1000000) | length }}",
        "{{ ('{0}' * 100000).format('b' * 1000000) | length }}",
        "{{ ('%s' * 100000) | format('b' * 1000000) | length }}",
        "{{ ('a\\t' * 1000).expandtabs(100000000) | length }}",
        "{{ (['b' * 1000000] * 1000000) | join | length }}",
        "{{ ('a\\n' * 1000000) | indent(1000000) | length }}",
    ] {
        // A short answer is as good as an error.
        let _ = outcome(source);
    }
}

#[test]
fn deep_nesting_is_refused_before_it_is_compiled() {
    let deep = 100_000;
    let around = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(deep), close.repeat(deep))
    };
    for source in [
        format!("{{{{ {}1 }}}}", "-".repeat(deep)),
        format!("{{{{ {}true }}}}", "not ".repeat(deep)),
        format!("{{{{ 'x'{} }}}}", "|upper".repeat(deep)),
        format!("{{{{ messages{} }}}}", "[0]".repeat(deep)),
        format!("{{{{ messages{} }}}}", ".x".repeat(deep)),
        format!("{{{{ f{} }}}}", "()".repeat(deep)),
        format!("{{{{ 1{} }}}}", "+1".repeat(deep)),
        format!("{{{{ 'a'{} }}}}", "~'a'".repeat(deep)),
        format!("{{{{ 1{} }}}}", "**1".repeat(deep)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(deep)),
        format!("{{{{ 1{} }}}}", " and 1".repeat(deep)),
        format!("{{{{ 1{} }}}}", " is defined".repeat(deep)),
        format!("{{{{ 1{} }}}}", "==1".repeat(deep)),
        format!("{{{{ {} }}}}", around("(", "1", ")")),
        format!("{{{{ {} }}}}", around("[", "1", "]")),
        format!("{{{{ {} }}}}", around("{'a':", "1", "}")),
        around("{% if true %}", "x", "{% endif %}"),
        around("{% for m in messages %}", "x", "{% endfor %}"),
        format!(
            "{{% if false %}}{}{{% endif %}}",
            "{% elif false %}".repeat(deep)
        ),
        format!("{{% set {} = 1 %}}", around("(", "x", ")")),
        format!("{{{{ {}", "{{".repeat(deep)),
        "{% raw %}".repeat(deep),
        "{#".repeat(deep),
    ] {
        assert!(outcome(&source).is_err(), "{}", &source[..40]);
    }
    // What nests in values while it runs must not end the program either.
    for grow in [
        "[ns.x]",
        "{'a': ns.x}",
        "(ns.x,)",
        "ns.x | list",
        "[ns.x] | reverse",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in range(99999) %}}{{% set ns.x = {grow} %}}{{% endfor %}}{{{{ ns.x }}}}{{{{ ns.x | tojson }}}}{{{{ ns.x == ns.x }}}}"
        );
        let _ = outcome(&source);
    }
}

/// Pieces that a damaged or hostile template is put together from.
const PIECES: [&str; 40] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-%}",
    "{%-",
    " for m in messages ",
    " endfor ",
    " if ",
    " else ",
    " endif ",
    " set x = ",
    " macro f(a) ",
    " endmacro ",
    "f(1)",
    "messages",
    "[0]",
    ".content",
    "['role']",
    "|trim",
    "|tojson",
    "|join",
    "|list",
    "| replace('a', 'aa')",
    "range(99999)",
    "* 99999",
    " ~ ",
    "'x'",
    "\"",
    "'",
    "\\",
    "(",
    ")",
    "\r\n",
    "loop.index",
    "namespace(a=1)",
    "raise_exception('no')",
    "🦀",
];

#[test]
fn a_thousand_damaged_templates_end_with_a_text_or_an_error() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let seeds: Vec<&str> = names().filter_map(named).collect();
    let (mut texts, mut errors) = (0, 0);
    for _ in 0..1000 {
        let mut source = (*seeds.choose(&mut random).unwrap()).to_owned();
        for _ in 0..random.random_range(1..6) {
            source = mutated(&source, &mut random);
        }
        match outcome(&source) {
            Ok(_) => texts += 1,
            Err(_) => errors += 1,
        }
    }
    assert!(texts > 20 && errors > 200, "{texts} texts, {errors} errors");
}

/// One change: a piece put in, a part taken out, doubled, or multiplied.
fn mutated(source: &str, random: &mut ChaCha8Rng) -> String {
    let places: Vec<usize> = source
        .char_indices()
        .map(|(at, _)| at)
        .chain([source.len()])
        .collect();
    let mut place = || *places.choose(random).unwrap();
    let (a, b) = (place(), place());
    let (start, end) = (a.min(b), a.max(b));
    let (before, part, after) = (&source[..start], &source[start..end], &source[end..]);
    let piece = PIECES.choose(random).unwrap();
    match random.random_range(0..5) {
        0 => format!("{before}{piece}{part}{after}"),
        1 => format!("{before}{after}"),
        2 => format!("{before}{part}{part}{after}"),
        3 => format!(
            "{before}{}{part}{after}",
            piece.repeat(random.random_range(2..2000))
        ),
        _ => format!(
            "{before}{}{after}",
            part.chars().rev().take(50).collect::<String>()
        ),
    }
}
