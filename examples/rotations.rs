//! A service's side of the agent: the token for a request, then every rotation.
//!
//! To see it run: `cargo run -- dev --lifetime 5s -- cargo run --example rotations`.

// An example's output is its purpose.
#![allow(clippy::print_stdout)]

use bloom_agent::client::{Agent, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let agent = Agent::discover().await?;

    // Ask before each request: a token that is there comes from memory, and costs the provider nothing.
    let token = agent.token(None).await?;
    let authorization = token.authorization();
    println!("a header of {} bytes for {}", authorization.len(), token.name());

    // The stream outlives restarts of the agent.
    let mut tokens = agent.watch(None);
    while let Some(token) = tokens.next().await {
        println!("generation {} has come", token?.generation().as_u64());
    }
    Ok(())
}
