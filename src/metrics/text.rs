//! The metrics as OpenMetrics text: names, labels and help, sorted.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{CODES, Cells, Method, OUTCOMES, ProfileMetrics, VERBS, lock};
use crate::{audit::verb_word, token::ProfileName};

type Label<'a> = (&'static str, &'a str);

/// One metric family as it is written.
struct Family<'a> {
    metric: MetricEncoder<'a>,
}

impl Family<'_> {
    fn counter(&mut self, labels: &[Label<'_>], value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.metric.encode_family(&labels)?)
    }

    fn gauge(&mut self, labels: &[Label<'_>], value: i64) -> fmt::Result {
        ConstGauge::new(value).encode(self.metric.encode_family(&labels)?)
    }
}

fn family<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    unit: Option<&'a Unit>,
    kind: MetricType,
) -> Result<Family<'a>, fmt::Error> {
    Ok(Family { metric: encoder.encode_descriptor(name, help, unit, kind)? })
}

impl Collector for Cells {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};

        let encoder = &mut encoder;
        family(encoder, "build_info", "The version that runs; always 1.", None, Gauge)?
            .gauge(&[("version", self.version)], 1)?;

        let mut calls =
            family(encoder, "calls", "Calls answered, by gRPC method and status.", None, Counter)?;
        for ((method, label, _), row) in Method::ALL.iter().zip(&self.calls) {
            for (code, cell) in CODES.iter().zip(row) {
                let value = cell.load(Relaxed);
                // A series that begins at 0 can be seen to rise; 17 of them for each method would drown it.
                if value > 0 || (*code == "OK" && *method != Method::Unknown) {
                    calls.counter(&[("method", label), ("code", code)], value)?;
                }
            }
        }

        let serving = *lock(&self.serving);
        scalar(encoder, "connections", "Open connections.", gauge(serving.connections))?;
        let help = "Connections cut for flooding, or for saying nothing.";
        total(encoder, "connections_cut", help, serving.cut)?;

        let degraded = lock(&self.degraded).clone();
        if !degraded.is_empty() {
            let help = "What the agent must do without on this host: 1 while it does.";
            let mut family = family(encoder, "degraded", help, None, Gauge)?;
            for (what, value) in &degraded {
                family.gauge(&[("what", what)], i64::from(*value))?;
            }
        }

        let mut denied = family(encoder, "denied", "Calls denied, by what was asked for.", None, Counter)?;
        for (verb, cell) in VERBS.iter().zip(&self.denied) {
            denied.counter(&[("verb", verb_word(*verb))], cell.load(Relaxed))?;
        }

        let help = "Log lines that were dropped because nobody read them.";
        total(encoder, "log_lines_dropped", help, self.dropped_lines.count())?;
        let help = "Connections and calls refused for one of the limits.";
        total(encoder, "refused", help, serving.refused)?;
        total(encoder, "panics", "Panics: each is a fault of the agent.", self.panics.count())?;

        let profiles = lock(&self.profiles).clone();
        if !profiles.is_empty() {
            encode_profiles(encoder, &profiles)?;
        }

        let help = "Open WatchToken streams and health watches.";
        scalar(encoder, "watches", help, gauge(serving.watches))
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn encode_profiles(
    encoder: &mut DescriptorEncoder<'_>,
    profiles: &BTreeMap<ProfileName, Arc<ProfileMetrics>>,
) -> fmt::Result {
    use MetricType::{Counter, Gauge};

    let deviations: Vec<_> = profiles
        .iter()
        .flat_map(|(name, numbers)| {
            lock(&numbers.deviations).iter().map(|(kind, count)| (name, *kind, *count)).collect::<Vec<_>>()
        })
        .collect();
    if !deviations.is_empty() {
        let help = "Answers taken although they depart from the RFC.";
        let mut family = family(encoder, "provider_deviations", help, None, Counter)?;
        for (name, kind, count) in deviations {
            family.counter(&[("profile", name.as_str()), ("kind", kind)], count)?;
        }
    }

    let mut refreshes = family(encoder, "refreshes", "Attempts to get a token, by outcome.", None, Counter)?;
    for (name, numbers) in profiles {
        for (outcome, cell) in OUTCOMES.iter().zip(&numbers.refreshes) {
            refreshes.counter(&[("profile", name.as_str()), ("outcome", outcome)], cell.load(Relaxed))?;
        }
    }

    let seconds = Unit::Seconds;
    let help = "When the token expires, in seconds since 1970; 0 without a token.";
    let mut expiry = family(encoder, "token_expiry_timestamp", help, Some(&seconds), Gauge)?;
    for (name, numbers) in profiles {
        expiry.gauge(&[("profile", name.as_str())], numbers.expiry.load(Relaxed))?;
    }

    let mut requests = family(encoder, "token_requests", "Token requests sent.", None, Counter)?;
    for (name, numbers) in profiles {
        requests.counter(&[("profile", name.as_str())], numbers.requests.load(Relaxed))?;
    }
    Ok(())
}

fn scalar(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn total(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}
