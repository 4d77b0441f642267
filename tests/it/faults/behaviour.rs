//! What providers do over time.

use super::row::Row;

pub(crate) fn rows() -> Vec<Row> {
    Vec::new()
}
