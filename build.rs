//! Generates the gRPC code from `proto/` with a compiler written in Rust: no `protoc` is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["bloom/agent/v1/token.proto", "bloom/agent/v1/admin.proto"], ["proto"])?;
    // Server reflection serves this.
    let descriptor = PathBuf::from(env::var("OUT_DIR")?).join("descriptor.bin");
    fs::write(descriptor, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // A derived Debug would print the token: src/pb.rs writes it by hand.
        .skip_debug(["bloom.agent.v1.Token"])
        .compile_fds(files)?;
    Ok(())
}
