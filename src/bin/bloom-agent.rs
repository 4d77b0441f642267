//! The daemon: `run`, `check` and `dev`.

use std::process::ExitCode;

use bloom_agent::{daemon, hardening, wiping::WipingAllocator};

/// What is freed is wiped first: secrets and tokens pass through buffers of libraries that do not know what they hold.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator::new();

fn main() -> ExitCode {
    // First, with no branch before it: from here on no core file, no ptrace by the same user, no descriptor for a child.
    let hardened = hardening::apply();
    daemon::main(hardened)
}
