//! What was measured, for machines and for people.

use std::time::Duration;

use crate::attacks::{Attack, Must};

/// What one attack cost.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What must come of it.
    pub(crate) must: Must,
    /// By one connection, in bytes.
    pub(crate) one: u64,
    /// By all that a uid may have, in bytes.
    pub(crate) peak: u64,
    /// What is left of that when it is over.
    pub(crate) stays: u64,
    /// Shares of a core that the daemon takes for the victim alone, one for each round.
    pub(crate) quiet_core: Vec<f64>,
    /// Shares of a core after the first second of the attack, the victim's calls and all.
    pub(crate) core: Vec<f64>,
    /// The victim's calls without it.
    pub(crate) quiet: Vec<Duration>,
    /// And under it.
    pub(crate) attacked: Vec<Duration>,
    /// The longest way back.
    pub(crate) back: Duration,
    /// Connections that ended and were opened again.
    pub(crate) struck: u64,
    /// Lines of the log with the hostile uid.
    pub(crate) log_lines: usize,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Row {
    pub(crate) fn new(attack: &Attack, one: u64, back: Duration) -> Self {
        let (quiet_core, core, quiet, attacked) = Default::default();
        let (name, must) = (attack.name, attack.must);
        Self {
            name,
            must,
            one,
            peak: 0,
            stays: 0,
            quiet_core,
            core,
            quiet,
            attacked,
            back,
            struck: 0,
            log_lines: 0,
        }
    }

    /// Each budget: what it is, what it came to, and what it may be.
    fn budgets(&self) -> [(&'static str, f64, f64); 6] {
        let (quiet, attacked) = (sorted(&self.quiet), sorted(&self.attacked));
        [
            ("one_connection_mib", self.one as f64 / MIB, 8.0),
            ("uid_mib", self.peak as f64 / MIB, 32.0),
            ("core_share", median(&self.core) - median(&self.quiet_core), 0.25),
            ("p50_more_ms", share(&attacked, 50) - share(&quiet, 50), 0.1),
            ("p99_ms", share(&attacked, 99), 10.0),
            ("back_s", self.back.as_secs_f64(), 60.0),
        ]
    }

    /// One line.
    pub(crate) fn json(&self) -> String {
        let (quiet, attacked) = (sorted(&self.quiet), sorted(&self.attacked));
        let mut fields = serde_json::Map::new();
        fields.insert("attack".to_owned(), self.name.into());
        fields.insert("must".to_owned(), format!("{:?}", self.must).to_lowercase().into());
        for (budget, value, most) in self.budgets() {
            fields.insert(budget.to_owned(), round(value).into());
            fields.insert(format!("{budget}_ok"), (value <= most).into());
        }
        for (key, value) in [
            ("quiet_core_share", median(&self.quiet_core)),
            ("quiet_p50_ms", share(&quiet, 50)),
            ("quiet_p99_ms", share(&quiet, 99)),
            ("attacked_p50_ms", share(&attacked, 50)),
            ("stays_mib", self.stays as f64 / MIB),
        ] {
            fields.insert(key.to_owned(), round(value).into());
        }
        for (key, value) in [
            ("quiet_calls", self.quiet.len() as u64),
            ("attacked_calls", self.attacked.len() as u64),
            ("connections", self.struck),
            ("log_lines", self.log_lines as u64),
        ] {
            fields.insert(key.to_owned(), value.into());
        }
        serde_json::Value::Object(fields).to_string()
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn median(shares: &[f64]) -> f64 {
    let mut shares = shares.to_vec();
    shares.sort_by(f64::total_cmp);
    shares.get(shares.len() / 2).copied().unwrap_or(f64::INFINITY)
}

fn sorted(times: &[Duration]) -> Vec<Duration> {
    let mut times = times.to_vec();
    times.sort();
    times
}

/// The share of sorted times, in milliseconds.
fn share(sorted: &[Duration], percent: usize) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::INFINITY };
    sorted[(sorted.len() * percent / 100).min(last)].as_secs_f64() * 1000.0
}

/// All of them, with what is beyond its budget marked.
pub(crate) fn table(rows: &[Row]) {
    println!(
        "\n{:<50} {:>9} {:>9} {:>8} {:>10} {:>9} {:>7}",
        "attack", "1 conn", "1 uid", "core", "p50 more", "p99", "back"
    );
    let mut beyond = 0;
    for row in rows {
        let cells = row.budgets().map(|(budget, value, most)| {
            let unit = budget.rsplit('_').next().unwrap_or_default();
            let mark = if value <= most { ' ' } else { '!' };
            beyond += usize::from(value > most);
            let unit = unit.replace("share", "").replace("mib", "MiB");
            format!("{value:.2}{unit}{mark}")
        });
        let [one, uid, core, more, p99, back] = cells;
        println!("{:<50} {one:>9} {uid:>9} {core:>8} {more:>10} {p99:>9} {back:>7}", row.name);
    }
    let budgets = rows.len() * 6;
    println!(
        "\nbudgets: +8 MiB by one connection, +32 MiB by a uid, +25 % of a core, p50 +0.1 ms, p99 10 ms, back in 60 s"
    );
    println!("{} of {budgets} kept{}", budgets - beyond, if beyond == 0 { "" } else { "; beyond them: !" });
}
