//! An event of the audit as a sentence for people: `granted bloom to uid 991 (loans.service) by "group:credit": get,
//! generation 1795356300999`.
//!
//! Made of the audit's own fields, which stand beside it one by one for machines. Values are escaped as in a line.

use std::fmt::Write as _;

use super::line::{escape_text, quote_text};

/// The sentence of an event that has `fields`; none if they are not an audit's.
pub(super) fn of(fields: &[(&str, String)]) -> Option<String> {
    let get = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    let (decision, verb) = (get("decision")?, get("verb")?);
    let mut text = String::new();
    let mut say = |parts: &[&str]| parts.iter().for_each(|part| escape_text(part, &mut text));

    let who = who(get("uid")?, get("unit"), get("pid"));
    let profile = match get("profile") {
        // Whatever name the caller made up.
        Some("unknown") if decision == "denied" => Some("an unknown profile"),
        profile => profile,
    };
    let mut details = Vec::new();
    let rule = get("rule");
    match (decision, verb, profile) {
        ("granted", "report-rejected", Some(profile)) => say(&["the API rejects ", profile, ", says ", &who]),
        ("granted", _, Some(profile)) if get("generation").is_some() => {
            say(&["granted ", profile, " to ", &who]);
            details.push(verb.to_owned());
        }
        ("granted", _, Some(profile)) => say(&["granted ", verb, " of ", profile, " to ", &who]),
        (_, "admin", _) | (_, _, None) => say(&[decision, " ", verb, " to ", &who]),
        (_, _, Some(profile)) => {
            say(&[decision, " ", profile, " to ", &who]);
            details.push(verb.to_owned());
        }
    }
    if let Some(rule) = rule {
        text.push_str(" by ");
        quote_text(rule, &mut text);
    }
    details.extend(get("generation").map(|generation| format!("generation {generation}")));
    details.extend(get("count").filter(|count| *count != "1").map(|count| format!("{count} times")));
    for (n, detail) in details.iter().enumerate() {
        text.push_str(if n == 0 { ": " } else { ", " });
        escape_text(detail, &mut text);
    }
    Some(text)
}

/// The unit says more than the process, which may be gone when somebody reads it.
fn who(uid: &str, unit: Option<&str>, pid: Option<&str>) -> String {
    let mut who = format!("uid {uid}");
    let _infallible = match (unit, pid) {
        (Some(unit), _) => write!(who, " ({unit})"),
        (None, Some(pid)) => write!(who, " (pid {pid})"),
        (None, None) => Ok(()),
    };
    who
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_reads_as_a_sentence() {
        let cases: &[(&str, &str)] = &[
            (
                "decision=granted verb=get profile=bloom generation=17 uid=991 pid=7 unit=loans.service rule=group:credit",
                "granted bloom to uid 991 (loans.service) by \"group:credit\": get, generation 17",
            ),
            (
                "decision=granted verb=watch profile=bloom generation=17 uid=0 pid=7 rule=root",
                "granted bloom to uid 0 (pid 7) by \"root\": watch, generation 17",
            ),
            (
                "decision=denied verb=get profile=bloom uid=2 pid=7 unit=b.service count=1",
                "denied bloom to uid 2 (b.service): get",
            ),
            (
                "decision=denied verb=watch profile=unknown uid=2 pid=7 count=60",
                "denied an unknown profile to uid 2 (pid 7): watch, 60 times",
            ),
            (
                "decision=denied verb=admin profile=unknown uid=2 pid=7 count=2",
                "denied admin to uid 2 (pid 7): 2 times",
            ),
            (
                "decision=granted verb=refresh-token profile=bloom uid=0 pid=7 rule=root",
                "granted refresh-token of bloom to uid 0 (pid 7) by \"root\"",
            ),
            (
                "decision=granted verb=reload uid=0 pid=7 rule=root",
                "granted reload to uid 0 (pid 7) by \"root\"",
            ),
            (
                "decision=granted verb=report-rejected profile=bloom generation=5 uid=1 pid=7 rule=uid:1 count=3",
                "the API rejects bloom, says uid 1 (pid 7) by \"uid:1\": generation 5, 3 times",
            ),
        ];
        for (fields, expected) in cases {
            let fields: Vec<_> = fields
                .split(' ')
                .map(|pair| pair.split_once('=').unwrap())
                .map(|(k, v)| (k, v.to_owned()))
                .collect();
            assert_eq!(of(&fields).as_deref(), Some(*expected));
        }
    }

    #[test]
    fn what_is_no_event_of_the_audit_is_no_sentence_and_no_value_breaks_out_of_one() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("decision", "granted".into()), ("verb", "get".into())]), None);
        let fields =
            ["decision", "verb", "profile", "uid", "unit", "rule"].map(|name| (name, "\"\n".to_owned()));
        assert_eq!(of(&fields).unwrap(), "\"\\n \"\\n to uid \"\\n (\"\\n) by \"\\\"\\n\": \"\\n");
    }
}
