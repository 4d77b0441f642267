//! `term { "&" term }`: which peers a line of `allow` means.
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector;
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorFault;
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term;
/// stub
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(Box<str>);
impl UnitName {
    /// stub
    pub fn parse(text: &str) -> Result<Self, ()> {
        Ok(Self(text.into()))
    }
    /// stub
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
