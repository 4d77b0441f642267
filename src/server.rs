//! x
pub mod bind;
pub mod timeout;
mod wire;
