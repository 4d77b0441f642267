//! Values that are nowhere else in the world, and every form in which one of them may turn up.
//!
//! A canary begins and ends with a core of 16 hexadecimal digits, and each core is looked for as well: half a secret in
//! a log is a leak, and what comes between the cores is what encodings change.

use std::collections::HashMap;

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{GeneralPurpose, GeneralPurposeConfig},
};

/// Something that must not be found, and what it is called when it is.
#[derive(Clone)]
pub(crate) struct Canary {
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

impl Canary {
    /// A secret with what form encoding, JSON and a header would have to change.
    pub(crate) fn secret(name: &'static str) -> Self {
        Self::around(name, "+/&=\"\\ %\u{e9}~")
    }

    /// A secret for where there is a grammar: letters, digits and a hyphen.
    pub(crate) fn plain(name: &'static str) -> Self {
        Self::around(name, "-")
    }

    /// A token of the issuer's or of the test's own.
    pub(crate) fn token(name: &'static str, text: &str) -> Self {
        Self { name, text: text.trim().to_owned() }
    }

    fn around(name: &'static str, middle: &str) -> Self {
        let core = || format!("{:016x}", rand::random::<u64>());
        Self { name, text: format!("{}{middle}{}", core(), core()) }
    }

    /// The whole, and its first and last 16 bytes.
    fn parts(&self) -> [&[u8]; 3] {
        let bytes = self.text.as_bytes();
        assert!(bytes.len() >= 32, "{} is too short to be unique in parts", self.name);
        [bytes, &bytes[..16], &bytes[bytes.len() - 16..]]
    }
}

/// What is looked for, by its first two bytes: one pass over the text finds all of them.
pub(crate) struct Search {
    needles: HashMap<[u8; 2], Vec<(Vec<u8>, String)>>,
    begins: Vec<bool>,
}

impl Search {
    /// Looks for every form of `canaries`; `client_id` is what Basic authentication puts before a secret.
    pub(crate) fn new<'a>(client_id: &str, canaries: impl IntoIterator<Item = &'a Canary>) -> Self {
        let mut search = Self { needles: HashMap::new(), begins: vec![false; 1 << 16] };
        for canary in canaries {
            for part in canary.parts() {
                for (form, needle) in forms(part) {
                    search.add(needle, format!("{} ({form})", canary.name));
                }
            }
            let pair = [client_id.as_bytes(), b":", canary.text.as_bytes()].concat();
            for (form, needle) in forms(&pair) {
                search.add(needle, format!("{} (id:secret, {form})", canary.name));
            }
        }
        search
    }

    /// Looks for whole canaries only, so that each copy is found once: in every form, and as a part of nothing else.
    pub(crate) fn of_wholes<'a>(canaries: impl IntoIterator<Item = &'a Canary>) -> Self {
        let mut search = Self { needles: HashMap::new(), begins: vec![false; 1 << 16] };
        for canary in canaries {
            for (form, needle) in forms(canary.text.as_bytes()) {
                search.add(needle, format!("{} ({form})", canary.name));
            }
        }
        search
    }

    fn add(&mut self, needle: Vec<u8>, name: String) {
        let begin = [needle[0], needle[1]];
        self.begins[usize::from(u16::from_ne_bytes(begin))] = true;
        let list = self.needles.entry(begin).or_default();
        if list.iter().all(|(other, _)| *other != needle) {
            list.push((needle, name));
        }
    }

    /// What is in `bytes`, and where.
    pub(crate) fn found(&self, bytes: &[u8]) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (at, begin) in bytes.windows(2).enumerate() {
            let begin = [begin[0], begin[1]];
            if self.begins[usize::from(u16::from_ne_bytes(begin))] {
                let here = self.needles[&begin].iter().filter(|(needle, _)| bytes[at..].starts_with(needle));
                found.extend(here.map(|(_, name)| (at, name.as_str())));
            }
        }
        found
    }

    /// Fails if anything is in `bytes`; says what, and around it what.
    pub(crate) fn assert_none_in(&self, place: &str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let found = self.found(bytes);
        if let Some((at, name)) = found.first() {
            let around = &bytes[at.saturating_sub(300)..bytes.len().min(at + 200)];
            panic!("{name} is in {place}: …{}…", String::from_utf8_lossy(around));
        }
    }
}

fn forms(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let each = |write: fn(u8) -> String| bytes.iter().map(|b| write(*b)).collect::<String>().into_bytes();
    let form: String = url::form_urlencoded::byte_serialize(bytes).collect();
    let list = |items: Vec<String>| items.join(", ").into_bytes();
    let mut forms = vec![
        ("plain".to_owned(), bytes.to_vec()),
        ("hex".to_owned(), each(|b| format!("{b:02x}"))),
        ("HEX".to_owned(), each(|b| format!("{b:02X}"))),
        ("hex with spaces".to_owned(), each(|b| format!("{b:02x} "))),
        ("percent".to_owned(), each(|b| format!("%{b:02X}"))),
        ("percent, small".to_owned(), each(|b| format!("%{b:02x}"))),
        ("form".to_owned(), form.clone().into_bytes()),
        ("form with %20".to_owned(), form.replace('+', "%20").into_bytes()),
        ("\\u".to_owned(), each(|b| format!("\\u{b:04x}"))),
        ("\\x".to_owned(), each(|b| format!("\\x{b:02x}"))),
        ("octal".to_owned(), each(|b| format!("\\{b:o}"))),
        ("a list of bytes".to_owned(), list(bytes.iter().map(ToString::to_string).collect())),
    ];
    if let Ok(text) = std::str::from_utf8(bytes) {
        let json = serde_json::to_string(text).unwrap();
        forms.push(("JSON".to_owned(), json.trim_matches('"').to_owned().into_bytes()));
        forms.push(("Debug".to_owned(), format!("{text:?}").trim_matches('"').to_owned().into_bytes()));
        let utf16 = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        forms.push(("UTF-16".to_owned(), utf16));
    }
    for (name, alphabet) in [("Base64", STANDARD), ("base64url", URL_SAFE)] {
        let engine = GeneralPurpose::new(&alphabet, GeneralPurposeConfig::new().with_encode_padding(false));
        for offset in 0..3 {
            // Only the characters that no neighbour has a bit of.
            let encoded = engine.encode([&vec![0; offset], bytes].concat());
            let (first, end) = ((offset * 8).div_ceil(6), (offset + bytes.len()) * 8 / 6);
            forms.push((format!("{name} at {offset}"), encoded.as_bytes()[first..end].to_vec()));
            // Of what was form-encoded before, as Basic has it.
            let encoded = engine.encode([&vec![0; offset], form.as_bytes()].concat());
            let end = (offset + form.len()) * 8 / 6;
            forms.push((format!("{name} at {offset} of form"), encoded.as_bytes()[first..end].to_vec()));
        }
    }
    forms
}

#[test]
fn a_canary_is_found_in_every_form_and_in_halves() {
    let canary = Canary::secret("secret");
    let search = Search::new("id", [&canary]);
    let std = base64::engine::general_purpose::STANDARD;
    let url = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let text = &canary.text;
    let form: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    for leak in [
        text.clone(),
        text[..20].to_owned(),
        text[10..].to_owned(),
        form.clone(),
        serde_json::json!({"a": text}).to_string(),
        format!("{text:?}"),
        format!("{:?}", text.as_bytes()),
        std.encode(text),
        std.encode(format!("x{text}")),
        std.encode(format!("xy{text}z")),
        url.encode(format!("id:{text}")),
        std.encode(format!("id:{form}")),
    ] {
        let around = format!("so {leak}, alas");
        assert!(!search.found(around.as_bytes()).is_empty(), "{leak}");
    }
    assert_eq!(search.found(b"nothing of it").len(), 0);
}
