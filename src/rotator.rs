//! The task of one token: drives [`crate::refresh::Refresh`], and has no rule of its own.
