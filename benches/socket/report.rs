//! What was measured: every figure as a line of JSON in `target/socket-bench.jsonl`, with each of its rounds, and tables in
//! Markdown on standard output.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
};

use serde_json::json;

/// Where the figures go.
pub(crate) struct Report {
    lines: File,
}

impl Report {
    /// Adds to what earlier runs have left there.
    pub(crate) fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/socket-bench.jsonl");
        let lines = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Self { lines }
    }

    /// Notes what a metric of a subject was in each round; returns the median.
    pub(crate) fn figure(
        &mut self,
        bench: &str,
        subject: &str,
        metric: &str,
        unit: &str,
        rounds: &[f64],
    ) -> f64 {
        let median = median(rounds);
        let line = json!({
            "bench": bench, "subject": subject, "metric": metric, "unit": unit, "median": median, "rounds": rounds,
        });
        writeln!(self.lines, "{line}").unwrap();
        median
    }

    /// Prints a table.
    pub(crate) fn table(&self, title: &str, heads: &[&str], rows: &[Vec<String>]) {
        println!("\n### {title}\n");
        println!("| {} |", heads.join(" | "));
        println!("|{}", "---|".repeat(heads.len()));
        for row in rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which that share of all lies.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    sorted[(last as f64 * share).round() as usize]
}

/// The exponent of a power law through the points: the slope of the line of least squares through their logarithms.
pub(crate) fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / count, b + y / count));
    let (over, under) =
        logs.iter().fold((0.0, 0.0), |(a, b), (p, q)| (a + (p - x) * (q - y), b + (p - x) * (p - x)));
    over / under
}
