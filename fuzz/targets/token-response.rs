#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| bloom_agent::fuzzing::run("token-response", data));
