//! Decompositions against `numpy`.

use frugal::adapt::linalg::{qr, randomised_svd, svd};

use crate::support::{Golden, fixture, max_difference};

const NAMES: [&str; 4] = ["tall", "wide", "square", "graded"];

fn golden() -> Golden {
    Golden::read(&fixture("linear_algebra/golden.safetensors"))
}

#[test]
fn singular_triples_are_those_of_numpy() {
    let golden = golden();
    for name in NAMES {
        let (shape, matrix) = &golden.floats[&format!("{name}.m")];
        let found = svd(matrix, shape[0], shape[1]);
        let expected = golden.float(&format!("{name}.s")).unwrap();
        for (found, expected) in found.s.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 2e-6 * expected,
                "{name}: {found} instead of {expected}"
            );
        }
        assert!(
            max_difference(&found.u, golden.float(&format!("{name}.u")).unwrap()) < 1e-5,
            "{name}"
        );
        assert!(
            max_difference(&found.vt, golden.float(&format!("{name}.vt")).unwrap()) < 1e-5,
            "{name}"
        );
        // With as many directions as the short side the randomised form is the exact one.
        assert_eq!(
            randomised_svd(matrix, shape[0], shape[1], 24, 0, 1, 0),
            found,
            "{name}"
        );
    }
}

#[test]
fn qr_is_that_of_numpy() {
    let golden = golden();
    for name in NAMES {
        let (shape, matrix) = &golden.floats[&format!("{name}.m")];
        let found = qr(matrix, shape[0], shape[1]);
        assert!(
            max_difference(&found.q, golden.float(&format!("{name}.q")).unwrap()) < 1e-5,
            "{name}"
        );
        assert!(
            max_difference(&found.r, golden.float(&format!("{name}.r")).unwrap()) < 1e-5,
            "{name}"
        );
    }
}
