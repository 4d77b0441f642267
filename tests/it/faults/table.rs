//! `docs/faults.md`.
