use frugal_kernels::{AdamWStep, adamw_step, grad_norm_sq};

use crate::support::{assert_close, random};

/// Three steps on more elements than one task, against the formula in double precision.
#[test]
fn adamw_matches_the_formula() {
    let n = 40_003;
    let mut param = random(1, n, 1.0, 1).data;
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let mut expected: Vec<[f64; 3]> = param.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=3 {
        let grad = random(1, n, 0.1, 10 + step).data;
        let h = AdamWStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        adamw_step(&mut param, &grad, &mut m, &mut v, &h);
        for ([p, m, v], g) in expected.iter_mut().zip(&grad) {
            let g = f64::from(*g) * 0.5;
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.95 * *v + 0.05 * g * g;
            let (m_hat, v_hat) = (
                *m / (1.0 - 0.9f64.powi(step as i32)),
                *v / (1.0 - 0.95f64.powi(step as i32)),
            );
            *p = *p * (1.0 - 1e-3) - 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
        }
    }
    let column = |i: usize| expected.iter().map(|e| e[i]).collect::<Vec<_>>();
    assert_close("parameters", &param, &column(0), 1e-5);
    assert_close("first moments", &m, &column(1), 1e-5);
    assert_close("second moments", &v, &column(2), 1e-5);
}

#[test]
fn the_norm_does_not_depend_on_the_threads() {
    let grad = random(1, 100_001, 3.0, 5).data;
    let norm = grad_norm_sq(&grad);
    let expected: f64 = grad.iter().map(|&g| f64::from(g).powi(2)).sum();
    assert!((norm / expected - 1.0).abs() < 1e-12);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        assert_eq!(pool.install(|| grad_norm_sq(&grad)), norm);
    }
    assert_eq!(grad_norm_sq(&[]), 0.0);
}
