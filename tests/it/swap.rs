//! A reload and a rotation in the same instant: the older decision gives nothing away.
//!
//! Below the daemon: the config's cell and the token's are moved by hand, with nothing in between.

use tonic::Code;

use crate::support::{Next as _, handmade::Handmade};

#[tokio::test]
async fn a_token_that_rotates_in_the_instant_of_a_reload_is_not_given_by_the_older_decision() {
    // Which of two things that are ready is taken may be a matter of chance: often enough to meet both.
    for _ in 0..100 {
        let agent = Handmade::serve(1234);
        agent.publish(1).await;
        let client = agent.client().await;
        let mut stream = client.watch("bloom").await.unwrap();
        assert_eq!(stream.next_message().await.unwrap().unwrap().token.unwrap().generation, 1);
        client.catch_up().await;

        agent.withdraw();
        agent.publish(2).await;
        let end = stream.next_message().await.expect_err("the permission is gone");
        assert_eq!(end.code(), Code::PermissionDenied);

        drop((stream, client));
        agent.end().await;
    }
}
