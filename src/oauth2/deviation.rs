//! What an answer does otherwise than RFC 6749 asks, and is accepted all the same: data for the log and the metrics.

/// One way in which an accepted answer departs from the RFC, or from what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Deviation {
    /// `expires_in` is a string.
    TextualLifetime,
    /// `expires_in` is absent or null.
    AssumedLifetime,
    /// `expires_in` is below a minute.
    ShortLifetime,
    /// `expires_in` is beyond 30 days.
    CutLifetime,
    /// No Content-Type.
    MissingContentType,
    /// No `Cache-Control: no-store`.
    Cacheable,
    /// Not every scope that was asked for is granted.
    NarrowerScope,
    /// `scope` is an array.
    ScopeArray,
    /// A byte order mark before the JSON.
    ByteOrderMark,
    /// The provider's Date and this host's clock are more than 5 min apart.
    ClockSkew,
}

impl Deviation {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::TextualLifetime,
        Self::AssumedLifetime,
        Self::ShortLifetime,
        Self::CutLifetime,
        Self::MissingContentType,
        Self::Cacheable,
        Self::NarrowerScope,
        Self::ScopeArray,
        Self::ByteOrderMark,
        Self::ClockSkew,
    ];

    /// The label of a metric.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TextualLifetime => "textual_lifetime",
            Self::AssumedLifetime => "assumed_lifetime",
            Self::ShortLifetime => "short_lifetime",
            Self::CutLifetime => "cut_lifetime",
            Self::MissingContentType => "missing_content_type",
            Self::Cacheable => "cacheable",
            Self::NarrowerScope => "narrower_scope",
            Self::ScopeArray => "scope_array",
            Self::ByteOrderMark => "byte_order_mark",
            Self::ClockSkew => "clock_skew",
        }
    }

    /// One line for the log: what, and what it means here.
    pub const fn text(self) -> &'static str {
        match self {
            Self::TextualLifetime => "expires_in is a string, not a number; it is read as one",
            Self::AssumedLifetime => "the answer has no expires_in; assumed_lifetime is used",
            Self::ShortLifetime => "expires_in is below a minute; the token is refreshed all the time",
            Self::CutLifetime => "expires_in is beyond 30 days; 30 days are believed",
            Self::MissingContentType => "the answer has no Content-Type; it is read as JSON",
            Self::Cacheable => "the answer has no Cache-Control: no-store (RFC 6749 s. 5.1)",
            Self::NarrowerScope => "fewer scopes are granted than were asked for; the API may answer 403",
            Self::ScopeArray => "scope is an array, not a string; it is read as one",
            Self::ByteOrderMark => "the answer starts with a byte order mark; it is skipped",
            Self::ClockSkew => {
                "the provider's clock and this host's are more than 5 min apart; is NTP running?"
            }
        }
    }

    /// Whether an operator should look at it, rather than the provider.
    pub const fn concerns_the_operator(self) -> bool {
        matches!(self, Self::ShortLifetime | Self::NarrowerScope | Self::ClockSkew)
    }
}

/// A set of [`Deviation`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deviations(u16);

impl Deviations {
    /// Adds one.
    pub fn insert(&mut self, deviation: Deviation) {
        self.0 |= 1 << deviation as u8;
    }

    /// Whether it is there.
    pub const fn contains(self, deviation: Deviation) -> bool {
        self.0 & (1 << deviation as u8) != 0
    }

    /// Adds all of `other` and returns those that were not there.
    pub fn extend(&mut self, other: Self) -> Self {
        let new = Self(other.0 & !self.0);
        self.0 |= other.0;
        new
    }

    /// Those that are there, in the order of [`Deviation::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Deviation> {
        Deviation::ALL.into_iter().filter(move |deviation| self.contains(*deviation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_tells_what_is_new() {
        let mut seen = Deviations::default();
        let mut first = Deviations::default();
        first.insert(Deviation::TextualLifetime);
        assert_eq!(seen.extend(first), first);
        let mut second = first;
        second.insert(Deviation::ClockSkew);
        assert_eq!(seen.extend(second).iter().collect::<Vec<_>>(), [Deviation::ClockSkew]);
        assert_eq!(seen.extend(second), Deviations::default());
        assert_eq!(seen.iter().collect::<Vec<_>>(), [Deviation::TextualLifetime, Deviation::ClockSkew]);
    }

    #[test]
    fn every_deviation_has_a_bit_and_a_label_of_its_own() {
        let mut all = Deviations::default();
        for deviation in Deviation::ALL {
            assert!(!all.contains(deviation), "{deviation:?}");
            all.insert(deviation);
            assert!(deviation.text().is_ascii());
        }
        for words in [Deviation::label, Deviation::text] {
            let different: std::collections::BTreeSet<_> = Deviation::ALL.map(words).into();
            assert_eq!(different.len(), Deviation::ALL.len());
        }
    }

    #[test]
    fn an_operator_can_mend_lives_scopes_and_clocks_and_nothing_else() {
        let theirs = Deviation::ALL.into_iter().filter(|deviation| deviation.concerns_the_operator());
        let expected = [Deviation::ShortLifetime, Deviation::NarrowerScope, Deviation::ClockSkew];
        assert_eq!(theirs.collect::<Vec<_>>(), expected);
    }
}
