//! The standard services: health of the agent and of each profile, for those who may know of it; reflection.

use bloom_agent::{
    daemon::Signal,
    dev_issuer::{Control, Fault},
};
use http::{StatusCode, Uri};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{Agent, BLOOM, Next as _, Setting, as_caller, profile, skipped_without_root};

fn held(issuer: &Control) {
    issuer.push_fault(Fault::none().held());
}

#[tokio::test]
async fn a_profile_serves_while_it_has_a_valid_token_and_the_agent_until_it_drains() {
    let mut agent = Agent::start_with(Setting { before: held, ..Setting::default() }).await;
    let client = agent.client().await;
    agent.issuer.wait_for_request(1).await;
    assert_eq!(client.check("").await.unwrap(), ServingStatus::Serving, "the agent answers, token or not");
    assert_eq!(client.check(BLOOM).await.unwrap(), ServingStatus::NotServing);
    let (mut whole, mut bloom) = (client.watch_health("").await, client.watch_health(BLOOM).await);
    assert_eq!(whole.next_message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(bloom.next_message().await.unwrap().unwrap().status(), ServingStatus::NotServing);

    agent.issuer.release();
    assert_eq!(bloom.next_message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(client.check(BLOOM).await.unwrap(), ServingStatus::Serving);

    // A rotation is nothing to tell; an expiry is.
    client.refresh(BLOOM).await.unwrap();
    agent.issuer.set_rule(Some(Fault::status(StatusCode::BAD_GATEWAY)));
    agent.time.advance_to(agent.served_until(BLOOM));
    assert_eq!(bloom.next_message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(client.check(BLOOM).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(client.check("").await.unwrap(), ServingStatus::Serving);

    agent.signal(Signal::Stop).await;
    assert_eq!(whole.next_message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    for stream in [&mut whole, &mut bloom] {
        assert_eq!(stream.next_message().await.expect_err("the end").code(), Code::Unavailable);
    }
    drop((whole, bloom, client));
    agent.ended().await;
}

#[tokio::test]
async fn what_a_caller_may_not_use_it_cannot_tell_from_what_is_not_there() {
    if skipped_without_root("what_a_caller_may_not_use_it_cannot_tell_from_what_is_not_there") {
        return;
    }
    let tokens = profile("mine", "allow = ['uid:1234']") + &profile("theirs", "allow = ['uid:4321']");
    let agent = Agent::start_with(Setting { tokens: tokens.clone(), ..Setting::default() }).await;
    let (operator, caller) = (agent.client().await, as_caller(&agent, 1234).await);
    caller.get("mine").await.unwrap();
    operator.get("theirs").await.unwrap();
    assert_eq!(caller.check("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(caller.check("mine").await.unwrap(), ServingStatus::Serving);
    let answer =
        |status: tonic::Status| (status.code(), status.message().to_owned(), status.details().to_vec());
    let real = answer(caller.check("theirs").await.expect_err("unknown"));
    assert_eq!(real, answer(caller.check("invented").await.expect_err("unknown")));
    assert_eq!(real.0, Code::NotFound);
    for name in ["theirs", "invented", "bloom.agent.v1.TokenService"] {
        let mut watch = caller.watch_health(name).await;
        assert_eq!(watch.next_message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    }
    // The same for the token itself.
    let real = answer(caller.get("theirs").await.expect_err("denied"));
    assert_eq!(real, answer(caller.get("invented").await.expect_err("denied")));
    assert_eq!(real.0, Code::PermissionDenied);
    let names: Vec<_> = caller.list().await.into_iter().map(|token| token.name).collect();
    assert_eq!(names, ["mine"]);

    // A watch follows what a reload makes of it.
    let mut watch = caller.watch_health("theirs").await;
    watch.next_message().await.unwrap();
    agent.write_config(&tokens.replace("uid:4321", "gid:1234"));
    operator.reload().await.unwrap();
    assert_eq!(watch.next_message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    agent.write_config(&tokens);
    operator.reload().await.unwrap();
    assert_eq!(watch.next_message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    agent.stop().await;
}

const SERVICES: [&str; 5] = [
    "bloom.agent.v1.AdminService",
    "bloom.agent.v1.TokenService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The two versions of reflection have the same messages in two packages.
macro_rules! listed_services {
    ($version:ident, $client:expr) => {{
        use $version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let origin = Uri::from_static("http://localhost");
        let mut reflection = ServerReflectionClient::with_origin($client.wire(), origin);
        let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let requests = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("bloom.agent.v1.TokenService".to_owned())),
        ]);
        let mut answers = reflection.server_reflection_info(requests).await.unwrap().into_inner();
        let listed = answers.next_message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(listed) = listed else { panic!("another answer") };
        let described = answers.next_message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::FileDescriptorResponse(file) = described else { panic!("another answer") };
        assert!(!file.file_descriptor_proto.is_empty());
        let mut names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        names.sort();
        names
    }};
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_of_its_versions() {
    let agent = Agent::start().await;
    let client = agent.client().await;
    let (new, old) = (listed_services!(v1, client), listed_services!(v1alpha, client));
    for names in [new, old] {
        for service in &SERVICES[..3] {
            assert!(names.contains(&(*service).to_owned()), "{names:?}");
        }
        assert!(names.iter().all(|name| SERVICES.contains(&name.as_str())), "{names:?}");
    }
    agent.stop().await;
}
