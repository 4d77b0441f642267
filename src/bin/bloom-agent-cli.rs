//! `bloom-agent-cli`: tokens for people and scripts; all of it is in [`bloom_agent::cli`].

fn main() -> ! {
    bloom_agent::cli::main(std::env::args_os())
}
