//! What a reload does, profile by profile. Pure.

use std::collections::BTreeMap;

use crate::{config::Profile, token::ProfileName};

/// What becomes of one profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// Its identity changed: the old token is withdrawn, and one is fetched at once.
    Replaced,
    /// Anything else changed or nothing did: the token stays.
    Kept,
    /// It is gone.
    Removed,
}

/// The change of every profile that is in either config.
pub fn plan(
    old: &BTreeMap<ProfileName, Profile>,
    new: &BTreeMap<ProfileName, Profile>,
) -> BTreeMap<ProfileName, Change> {
    let removed =
        old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Change::Removed));
    let others = new.iter().map(|(name, profile)| {
        let change = match old.get(name) {
            None => Change::Added,
            Some(before) if !before.same_identity(profile) => Change::Replaced,
            Some(_) => Change::Kept,
        };
        (name.clone(), change)
    });
    removed.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Kind, SourceFile};

    fn tokens(text: &str) -> BTreeMap<ProfileName, Profile> {
        let source = SourceFile { name: "config.toml".into(), text: text.to_owned(), kind: Kind::Main };
        config::read(&[source]).unwrap().tokens
    }

    fn profile(name: &str, lines: &str) -> String {
        format!(
            "[tokens.{name}]\nprovider = 'oauth2'\ntoken_url = 'https://id.example/token'\nclient_id = 'c'\n{lines}\n"
        )
    }

    #[test]
    fn what_a_token_was_obtained_for_decides_whether_it_stays() {
        let secret = "client_secret.file = '/s'\n";
        let old = tokens(&profile("a", &format!("{secret}audience = 'x'\nscopes = ['r', 'w']")));
        let table = [
            ("nothing", format!("{secret}audience = 'x'\nscopes = ['r', 'w']"), Change::Kept),
            ("order of scopes", format!("{secret}audience = 'x'\nscopes = ['w', 'r']"), Change::Kept),
            (
                "allow",
                format!("{secret}audience = 'x'\nscopes = ['r', 'w']\nallow = ['uid:1']"),
                Change::Kept,
            ),
            (
                "refresh",
                format!("{secret}audience = 'x'\nscopes = ['r', 'w']\nrefresh = {{ at = 0.5 }}"),
                Change::Kept,
            ),
            (
                "secret",
                "client_secret.file = '/t'\naudience = 'x'\nscopes = ['r', 'w']".to_owned(),
                Change::Kept,
            ),
            ("audience", format!("{secret}audience = 'y'\nscopes = ['r', 'w']"), Change::Replaced),
            ("scopes", format!("{secret}audience = 'x'\nscopes = ['r']"), Change::Replaced),
            (
                "resource",
                format!("{secret}audience = 'x'\nscopes = ['r', 'w']\nresource = ['https://r']"),
                Change::Replaced,
            ),
            (
                "method",
                format!("{secret}audience = 'x'\nscopes = ['r', 'w']\nbody = 'json'"),
                Change::Replaced,
            ),
        ];
        for (what, lines, change) in table {
            let name = ProfileName::parse("a").unwrap();
            assert_eq!(plan(&old, &tokens(&profile("a", &lines))), [(name, change)].into(), "{what}");
        }
    }

    #[test]
    fn profiles_come_and_go() {
        let secret = "client_secret.file = '/s'";
        let (a, b) = (tokens(&profile("a", secret)), tokens(&profile("b", secret)));
        let name = |text| ProfileName::parse(text).unwrap();
        assert_eq!(plan(&a, &b), [(name("a"), Change::Removed), (name("b"), Change::Added)].into());
        assert!(plan(&BTreeMap::new(), &BTreeMap::new()).is_empty());
    }
}
