//! The generated messages and services of `proto/`, and the `Debug` that keeps a token out of logs.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

use std::fmt;

/// Package `bloom.agent.v1`.
pub mod v1 {
    tonic::include_proto!("bloom.agent.v1");
}

pub use v1::*;

/// Both files and what they import, for server reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptor");

/// Whatever prints a reply prints this.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .field("access_token", &format_args!("…"))
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
