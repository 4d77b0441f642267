//! Real uids at a socket that is open to all: what each of them gets from every rpc.

use bloom_agent::dev_issuer::Outage;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::{Agent, Client, Next as _, Setting, as_member, profile, skipped_without_root};

const ALLOWED: u32 = 1234;
const MEMBER: u32 = 2345;
const GROUP: u32 = 7777;
const STRANGER: u32 = 3456;
const NOBODY: u32 = 65_534;

/// What one caller sees.
#[derive(Debug, PartialEq)]
struct Seen {
    get: Code,
    watch: Code,
    report: Code,
    health: Code,
    health_watch: ServingStatus,
    listed: Vec<String>,
    admin: Code,
}

fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

async fn seen(client: &Client, name: &str) -> Seen {
    let first = client.watch_health(name).await.next_message().await.unwrap().unwrap();
    let mut admin =
        [code(&client.status().await), code(&client.metrics().await), code(&client.reload().await)];
    admin.sort_by_key(|code| *code as i32);
    assert_eq!(admin[0], admin[2], "the same for each of the operator's calls");
    Seen {
        get: code(&client.get(name).await),
        watch: code(&client.watch(name).await),
        report: code(&client.report(name, 1).await),
        health: code(&client.check(name).await),
        health_watch: first.status(),
        listed: client.list().await.into_iter().map(|token| token.name).collect(),
        admin: admin[0],
    }
}

fn may(listed: &[&str], admin: Code) -> Seen {
    Seen {
        get: Code::Ok,
        watch: Code::Ok,
        report: Code::Ok,
        health: Code::Ok,
        health_watch: ServingStatus::Serving,
        listed: listed.iter().map(|name| (*name).to_owned()).collect(),
        admin,
    }
}

fn may_not(listed: &[&str], admin: Code) -> Seen {
    Seen {
        get: Code::PermissionDenied,
        watch: Code::PermissionDenied,
        report: Code::PermissionDenied,
        health: Code::NotFound,
        health_watch: ServingStatus::ServiceUnknown,
        ..may(listed, admin)
    }
}

#[tokio::test]
async fn each_caller_gets_what_the_rules_say_from_every_rpc() {
    if skipped_without_root("each_caller_gets_what_the_rules_say_from_every_rpc") {
        return;
    }
    let rules = format!("allow = ['uid:{ALLOWED}', 'gid:{GROUP}', 'uid:{STRANGER} & gid:{GROUP}']");
    let tokens = profile("open", &rules) + &profile("private", "");
    for (root, roots) in [
        ("", may(&["open", "private"], Code::Ok)),
        // The agent runs as root here: that admits root no more than being root does, but AdminService stays root's.
        ("root = 'by-rule'\n", may_not(&[], Code::Ok)),
    ] {
        let agent = Agent::start_with(Setting { tokens: tokens.clone(), ..Setting::default() }).await;
        agent.write_raw_config(&format!("[agent]\n{root}{tokens}"));
        let operator = agent.client().await;
        for name in ["open", "private"] {
            agent.attempts_until(name, |attempts| attempts.settled == 1).await;
        }
        operator.reload().await.unwrap();
        // Nobody's call is to change anything for the next.
        agent.issuer.set_outage(Outage::Refuse);
        assert_eq!(seen(&operator, "open").await, roots, "root, {root:?}");
        let no = Code::PermissionDenied;
        let table = [
            ("an allowed user", as_member(&agent, ALLOWED, &[]).await, may(&["open"], no)),
            (
                "a member of an allowed group",
                as_member(&agent, MEMBER, &[5, GROUP]).await,
                may(&["open"], no),
            ),
            ("a stranger", as_member(&agent, STRANGER, &[5]).await, may_not(&[], no)),
            ("nobody", as_member(&agent, NOBODY, &[]).await, may_not(&[], no)),
            ("nobody in an allowed group", as_member(&agent, NOBODY, &[GROUP]).await, may_not(&[], no)),
        ];
        for (who, client, expected) in table {
            assert_eq!(seen(&client, "open").await, expected, "{who}");
            assert_eq!(client.check("").await.unwrap(), ServingStatus::Serving, "{who}");
            for name in ["private", "invented"] {
                let others = Seen { listed: expected.listed.clone(), ..may_not(&[], no) };
                assert_eq!(seen(&client, name).await, others, "{who} and {name}");
            }
        }
        assert_eq!(agent.issuer.request_count(), 2);
        agent.stop().await;
    }
}
