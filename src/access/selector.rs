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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitName;
