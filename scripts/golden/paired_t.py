"""Paired t tests: intervals, p-values and the smallest difference that could have been seen.

Usage: python scripts/golden/paired_t.py      writes fixtures/statistics/paired_t.json

The smallest difference is exact: the noncentral t distribution gives the power of the two-sided test at
a true difference, and the difference is the root of `power - 0.8`.
"""

import json
from pathlib import Path

import numpy as np
import scipy
from scipy import optimize, stats

OUT = Path("fixtures/statistics")
CASES = {
    "three seeds apart": [0.021, 0.018, 0.026],
    "three seeds together": [0.01, -0.02, 0.004],
    "five seeds worse": [-0.4, -0.31, -0.52, -0.45, -0.38],
    "two seeds": [0.5, 0.7],
    "twelve seeds": [0.3, 0.1, -0.2, 0.4, 0.15, 0.22, -0.05, 0.31, 0.12, 0.08, 0.27, 0.19],
    "large numbers": [1.0e6, 1.2e6, 0.7e6, 1.1e6],
}


def power(difference, deviation, count):
    """Of the two-sided test at 5 %."""
    critical = stats.t.ppf(0.975, count - 1)
    shift = difference / deviation * np.sqrt(count)
    # Beyond eight the other tail is below 1e-15, where the library gives no number.
    other = stats.nct.cdf(-critical, count - 1, shift) if shift < 8 else 0.0
    return stats.nct.sf(critical, count - 1, shift) + other


def case(name, values):
    count, mean, deviation = len(values), np.mean(values), np.std(values, ddof=1)
    result = stats.ttest_1samp(values, 0.0)
    interval = result.confidence_interval(0.95)
    # The power rises with the difference; 14 standard deviations are enough for two values.
    detectable = optimize.brentq(lambda d: power(d * deviation, deviation, count) - 0.8, 0.01, 14, xtol=1e-13)
    return {
        "name": name,
        "values": values,
        "mean": float(mean),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(result.pvalue),
        "detectable": float(detectable * deviation),
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    body = {
        "header": {"generator": "scripts/golden/paired_t.py", "scipy": scipy.__version__},
        "cases": [case(name, values) for name, values in CASES.items()],
    }
    (OUT / "paired_t.json").write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
