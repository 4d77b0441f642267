//! Real uids at the shipped daemon's socket: who gets what of every rpc.
//!
//! The socket's mode is opened to 0666, so that what refuses here is the agent and never the file system. What is expected
//! is written down by hand, caller by caller and setting by setting: the test has no rules of its own that could make the
//! same mistake as the agent's.

use std::{collections::BTreeMap, future::Future};

use bloom_agent::pb::{
    GetMetricsRequest, GetStatusRequest, GetTokenRequest, ListTokensRequest, RefreshTokenRequest,
    ReloadRequest, ReportRejectedRequest, WatchTokenRequest, admin_service_client::AdminServiceClient,
    token_service_client::TokenServiceClient,
};
use nix::{sys::signal::Signal, unistd::Group};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

use crate::host::{Agent, Host, User, connect, is_root, on_this_thread, shown};

/// Every profile, sorted as the agent lists them, and its rules.
const PROFILES: [(&str, &str); 6] = [
    ("by-both", "allow = [\"uid:2002 & gid:3001\"]"),
    ("by-gid", "allow = [\"gid:3001\"]"),
    ("by-nogroup", "allow = [\"gid:65534\"]"),
    ("by-root", "allow = [\"user:root\"]"),
    ("by-uid", "allow = [\"uid:2001\", \"uid:2001 & gid:1\"]"),
    ("owned", ""),
];
const ALL: &[&str] = &["by-both", "by-gid", "by-nogroup", "by-root", "by-uid", "owned"];
const NONE: &[&str] = &[];
const INVENTED: &str = "invented";
/// Runs the agent where root does not, and owns its secrets.
const OWNER: u32 = 1234;

/// One process that calls, and all that it may have.
struct Caller {
    who: &'static str,
    uid: u32,
    gid: u32,
    groups: &'static [u32],
    usable: &'static [&'static str],
    is_admin: bool,
}

const fn caller(
    who: &'static str,
    (uid, gid, groups): (u32, u32, &'static [u32]),
    usable: &'static [&'static str],
) -> Caller {
    Caller { who, uid, gid, groups, usable, is_admin: false }
}

/// Who gets the same, whatever the agent runs as and whatever root may.
const EVERYBODY_ELSE: [Caller; 11] = [
    caller("an allowed user", (2001, 2001, &[]), &["by-uid"]),
    caller("a member of the allowed group by a supplementary group only", (2003, 2003, &[3001]), &["by-gid"]),
    caller("one whose effective group is the allowed one", (2004, 3001, &[]), &["by-gid"]),
    caller("one whom both terms of a rule match", (2002, 2002, &[3001]), &["by-both", "by-gid"]),
    caller("one whom one of two terms matches", (2002, 2002, &[3009]), NONE),
    caller("one whose groups look like the user's number", (2005, 2005, &[2001, 2002]), NONE),
    caller("nobody", (65_534, 65_534, &[]), NONE),
    caller("nobody, in every allowed group", (65_534, 3001, &[3001, 3004, 0]), NONE),
    caller("a user whom no rule names", (2009, 2009, &[3009]), NONE),
    Caller { is_admin: true, ..caller("an admin by uid", (2006, 2006, &[]), NONE) },
    Caller { is_admin: true, ..caller("an admin by group", (2007, 2007, &[3004]), NONE) },
];

const fn root(usable: &'static [&'static str]) -> Caller {
    Caller { is_admin: true, ..caller("root", (0, 0, &[]), usable) }
}

const fn root_of_the_group(usable: &'static [&'static str]) -> Caller {
    Caller { is_admin: true, ..caller("root, in the allowed group", (0, 0, &[3001]), usable) }
}

const fn owner(usable: &'static [&'static str]) -> Caller {
    caller("uid 1234, who may be the owner", (OWNER, OWNER, &[]), usable)
}

#[test]
fn who_gets_what_of_an_agent_of_roots() {
    let callers = [root(ALL), root_of_the_group(ALL), owner(NONE)];
    judge(None, "always", &callers);
}

#[test]
fn who_gets_what_of_an_agent_of_roots_when_root_goes_by_rule() {
    // Not even the profile without `allow`: a container's uid 0 is uid 0, and would be "the owner".
    let callers = [root(&["by-root"]), root_of_the_group(&["by-gid", "by-root"]), owner(NONE)];
    judge(None, "by-rule", &callers);
}

#[test]
fn who_gets_what_of_an_agent_of_a_users() {
    let callers = [root(ALL), root_of_the_group(ALL), owner(&["owned"])];
    judge(Some(User::new(OWNER, OWNER, &[])), "always", &callers);
}

#[test]
fn who_gets_what_of_an_agent_of_a_users_when_root_goes_by_rule() {
    let callers = [root(&["by-root"]), root_of_the_group(&["by-gid", "by-root"]), owner(&["owned"])];
    judge(Some(User::new(OWNER, OWNER, &[])), "by-rule", &callers);
}

/// Starts an agent and lets every caller do everything.
fn judge(runs_as: Option<User>, root: &str, callers: &[Caller]) {
    if !is_root("the outcome of every rpc for every uid") {
        return;
    }
    let host = Host::new("s3cret");
    let mut config = host.plain_agent_table(&format!(
        "socket_mode = \"0666\"\nsocket_group = \"root\"\nroot = \"{root}\"\nadmin = [\"uid:2006\", \"gid:3004\"]"
    ));
    if runs_as.is_some() {
        config = config.replace("socket_group = \"root\"\n", "");
    }
    for (name, rules) in PROFILES {
        config += &host.profile(name, rules);
    }
    host.config(&config);
    let agent = runs_as.as_ref().map_or_else(|| host.start(), |user| host.start_as(user));
    agent.wait_for_log("serving");
    // Joins the first request of each, so that no outcome below depends on how fast the issuer is.
    for (name, _) in PROFILES {
        let output = host.cli(&["refresh", name]);
        assert!(output.status.success(), "{}\n{}", shown(&output), agent.log());
    }

    let mut wrong = Vec::new();
    let mut cells = 0;
    for caller in callers.iter().chain(&EVERYBODY_ELSE) {
        let user = User::new(caller.uid, caller.gid, caller.groups);
        let seen = user
            .act(|| on_this_thread(async { do_everything(connect(&host.path("agent.sock")).await).await }));
        let expected = expected(caller);
        let keys: std::collections::BTreeSet<_> = seen.outcomes.keys().chain(expected.keys()).collect();
        cells += keys.len();
        for key in keys {
            let (seen, expected) = (seen.outcomes.get(key), expected.get(key));
            if seen != expected {
                wrong.push(format!("{}: {key}: {seen:?} instead of {expected:?}", caller.who));
            }
        }
        for (rpc, refusals) in seen.refusals {
            // Known and unknown names must not be told apart, not by a word.
            if refusals.len() > 1 {
                wrong.push(format!("{}: {rpc} refuses in different words: {refusals:#?}", caller.who));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cells} outcomes\n{}\n{}", wrong.len(), wrong.join("\n"), agent.log());
    assert_eq!(cells, (callers.len() + EVERYBODY_ELSE.len()) * 49);
}

/// What the contract says that a caller sees, by rpc and argument.
fn expected(caller: &Caller) -> BTreeMap<String, String> {
    let all = caller.usable.len() == ALL.len();
    let refusal = "PermissionDenied NOT_ALLOWED".to_owned();
    let unknown = || if all { "NotFound UNKNOWN_PROFILE".to_owned() } else { refusal.clone() };
    let mut cells = BTreeMap::new();
    let mut put = |rpc: &str, argument: &str, outcome: String| {
        cells.insert(format!("{rpc}({argument})"), outcome);
    };
    for rpc in ["GetToken", "WatchToken", "ReportRejected"] {
        let good = |name: &str| match rpc {
            // The answer to a report does not repeat the name.
            "ReportRejected" => "OK new".to_owned(),
            _ => format!("OK token of {name}"),
        };
        for name in ALL {
            put(rpc, name, if caller.usable.contains(name) { good(name) } else { refusal.clone() });
        }
        put(rpc, INVENTED, unknown());
        put(
            rpc,
            "",
            match caller.usable {
                [] => refusal.clone(),
                [only] => good(only),
                many => format!("InvalidArgument NAME_REQUIRED {}", many.join(",")),
            },
        );
    }
    put("ListTokens", "", format!("OK {}", caller.usable.join(" ")).trim_end().to_owned());

    let admin = |outcome: &str| if caller.is_admin { outcome.to_owned() } else { refusal.clone() };
    put("RefreshToken", "by-gid", admin("OK by-gid"));
    put("RefreshToken", INVENTED, admin("NotFound UNKNOWN_PROFILE"));
    put("RefreshToken", "", admin("NotFound UNKNOWN_PROFILE"));
    put("Reload", "", admin("OK"));
    put("GetStatus", "", admin("OK by-both by-gid by-nogroup by-root by-uid owned"));
    put("GetMetrics", "", admin("OK"));

    put("Check", "", "OK Serving".to_owned());
    put("Watch", "", "OK Serving".to_owned());
    for name in ALL.iter().chain(&[INVENTED]) {
        let (check, watch) = if caller.usable.contains(name) {
            ("OK Serving", "OK Serving")
        } else {
            ("NotFound UNKNOWN_PROFILE", "OK ServiceUnknown")
        };
        put("Check", name, check.to_owned());
        put("Watch", name, watch.to_owned());
    }
    put("reflection", "v1", "OK 4 services".to_owned());
    put("reflection", "v1alpha", "OK 4 services".to_owned());
    cells
}

/// What one caller saw.
#[derive(Default)]
struct Seen {
    outcomes: BTreeMap<String, String>,
    /// By rpc: the different ways in which it was refused by PERMISSION_DENIED or NOT_FOUND, in full.
    refusals: BTreeMap<&'static str, Vec<String>>,
}

impl Seen {
    fn note(&mut self, rpc: &'static str, argument: &str, outcome: Result<String, Status>) {
        let outcome = match outcome {
            Ok(found) => format!("OK {found}").trim_end().to_owned(),
            Err(status) => {
                if matches!(status.code(), Code::PermissionDenied | Code::NotFound) {
                    let whole = format!("{:?} {:?} {:?}", status.code(), status.message(), status.details());
                    let refusals = self.refusals.entry(rpc).or_default();
                    if !refusals.contains(&whole) {
                        refusals.push(whole);
                    }
                }
                short(&status)
            }
        };
        self.outcomes.insert(format!("{rpc}({argument})"), outcome);
    }
}

/// Code and reason, and the names that the error lists for whom they are.
fn short(status: &Status) -> String {
    let info = status.get_details_error_info();
    let reason = info.as_ref().map_or("without ErrorInfo", |info| info.reason.as_str());
    let domain = info.as_ref().map_or("", |info| info.domain.as_str());
    assert_eq!(domain, "bloom.agent", "{status:?}");
    let listed = info.as_ref().and_then(|info| info.metadata.get("profiles"));
    match listed {
        Some(names) if status.code() == Code::InvalidArgument => {
            format!("{:?} {reason} {names}", status.code())
        }
        _ => format!("{:?} {reason}", status.code()),
    }
}

async fn first<T>(
    stream: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
) -> Result<T, Status> {
    let message = stream.await?.into_inner().message().await?;
    message.ok_or_else(|| Status::internal("the stream ends without a word"))
}

/// Every rpc with every name, over one connection.
async fn do_everything(channel: Channel) -> Seen {
    let mut seen = Seen::default();
    let mut tokens = TokenServiceClient::new(channel.clone());
    for name in ALL.iter().copied().chain([INVENTED, ""]) {
        let asked = || name.to_owned();
        let got = tokens.get_token(GetTokenRequest { name: asked(), min_validity: None }).await;
        seen.note("GetToken", name, got.map(|got| told(got.into_inner().token)));
        let got = first(tokens.watch_token(WatchTokenRequest { name: asked() })).await;
        seen.note("WatchToken", name, got.map(|got| told(got.token)));
        // A generation that was never current: nothing is fetched for it.
        let got = tokens.report_rejected(ReportRejectedRequest { name: asked(), generation: 1 }).await;
        let got = got.map(|got| if got.into_inner().is_new { "new" } else { "unchanged" }.to_owned());
        seen.note("ReportRejected", name, got);
    }
    let listed = tokens.list_tokens(ListTokensRequest {}).await;
    let names = |tokens: Vec<bloom_agent::pb::TokenStatus>| {
        tokens.into_iter().map(|token| token.name).collect::<Vec<_>>().join(" ")
    };
    let listed = listed.map(|listed| names(listed.into_inner().tokens));
    seen.note("ListTokens", "", listed);

    let mut admin = AdminServiceClient::new(channel.clone());
    for name in ["by-gid", INVENTED, ""] {
        let done = admin.refresh_token(RefreshTokenRequest { name: name.to_owned() }).await;
        let done = done.map(|done| done.into_inner().token.map(|token| token.name).unwrap_or_default());
        seen.note("RefreshToken", name, done);
    }
    let done = admin.reload(ReloadRequest {}).await;
    seen.note("Reload", "", done.map(|_| String::new()));
    let status = admin.get_status(GetStatusRequest {}).await;
    let profiles = |status: bloom_agent::pb::GetStatusResponse| {
        names(status.profiles.into_iter().filter_map(|profile| profile.token).collect())
    };
    seen.note("GetStatus", "", status.map(|status| profiles(status.into_inner())));
    let metrics = admin.get_metrics(GetMetricsRequest {}).await;
    seen.note(
        "GetMetrics",
        "",
        metrics.map(|metrics| {
            let text = metrics.into_inner().text;
            if text.ends_with("# EOF\n") { String::new() } else { format!("cut off: {text}") }
        }),
    );

    let mut health = HealthClient::new(channel.clone());
    for service in ALL.iter().copied().chain([INVENTED, ""]) {
        let asked = || HealthCheckRequest { service: service.to_owned() };
        let told = |status: i32| format!("{:?}", ServingStatus::try_from(status).unwrap());
        let checked = health.check(asked()).await;
        seen.note("Check", service, checked.map(|checked| told(checked.into_inner().status)));
        let watched = first(health.watch(asked())).await;
        seen.note("Watch", service, watched.map(|watched| told(watched.status)));
    }

    {
        use v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};
        let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answer = first(reflection.server_reflection_info(tokio_stream::once(request))).await;
        seen.note(
            "reflection",
            "v1",
            answer.map(|answer| match answer.message_response {
                Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
                    format!("{} services", list.service.len())
                }
                other => format!("{other:?}"),
            }),
        );
    }
    {
        use v1alpha::{ServerReflectionRequest, server_reflection_request::MessageRequest};
        let mut reflection = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answer = first(reflection.server_reflection_info(tokio_stream::once(request))).await;
        seen.note(
            "reflection",
            "v1alpha",
            answer.map(|answer| match answer.message_response {
                Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
                    format!("{} services", list.service.len())
                }
                other => format!("{other:?}"),
            }),
        );
    }
    seen
}

fn told(token: Option<bloom_agent::pb::Token>) -> String {
    let token = token.expect("an answer has its token");
    assert!(!token.access_token.is_empty());
    format!("token of {}", token.name)
}

#[test]
fn a_permission_taken_away_ends_the_watch_and_the_next_call_of_an_open_connection() {
    if !is_root("a permission taken away by SIGHUP") {
        return;
    }
    let host = Host::new("s3cret");
    let with = |kept: &str, gone: Option<&str>| {
        let mut config = host.agent_table("socket_mode = \"0666\"") + &host.profile("kept", kept);
        // Somebody else's all the time: the caller never may use every profile.
        config += &host.profile("other", "allow = [\"uid:2002\"]");
        config += &gone.map(|rules| host.profile("gone", rules)).unwrap_or_default();
        host.config(&config);
    };
    let mine = "allow = [\"uid:2001\"]";
    with(mine, Some(mine));
    let agent = host.run();
    let socket = host.path("agent.sock");

    let (ready, is_ready) = std::sync::mpsc::channel();
    let (again, mut told_again) = tokio::sync::mpsc::channel::<()>(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            User::new(2001, 2001, &[]).act(|| {
                on_this_thread(async move {
                    let channel = connect(&socket).await;
                    let mut tokens = TokenServiceClient::new(channel.clone());
                    let mut watch = async |name: &str| {
                        let stream = tokens.watch_token(WatchTokenRequest { name: name.to_owned() }).await;
                        let mut stream = stream.unwrap().into_inner();
                        assert_eq!(
                            told(stream.message().await.unwrap().unwrap().token),
                            format!("token of {name}")
                        );
                        stream
                    };
                    let (mut kept, mut gone) = (watch("kept").await, watch("gone").await);
                    let asked = HealthCheckRequest { service: "kept".to_owned() };
                    let mut health =
                        HealthClient::new(channel.clone()).watch(asked).await.unwrap().into_inner();
                    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
                    ready.send(()).unwrap();

                    let ended = |message: Result<Option<_>, Status>| short(&message.map(|_| ()).unwrap_err());
                    assert_eq!(ended(kept.message().await), "PermissionDenied NOT_ALLOWED");
                    assert_eq!(ended(gone.message().await), "NotFound UNKNOWN_PROFILE");
                    assert_eq!(
                        health.message().await.unwrap().unwrap().status(),
                        ServingStatus::ServiceUnknown
                    );
                    let mut tokens = TokenServiceClient::new(channel);
                    let mut get = async |name: &str| {
                        let asked = GetTokenRequest { name: name.to_owned(), min_validity: None };
                        tokens
                            .get_token(asked)
                            .await
                            .map(|got| told(got.into_inner().token))
                            .map_err(|e| short(&e))
                    };
                    for name in ["kept", "gone", "other", INVENTED, ""] {
                        assert_eq!(get(name).await, Err("PermissionDenied NOT_ALLOWED".to_owned()), "{name}");
                    }
                    ready.send(()).unwrap();

                    told_again.recv().await.unwrap();
                    assert_eq!(get("").await, Ok("token of kept".to_owned()));
                    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
                });
            });
        });
        is_ready.recv().unwrap();
        with("allow = [\"uid:2002\"]", None);
        agent.signal(Signal::SIGHUP);
        agent.wait_for_log("reloaded");
        is_ready.recv().unwrap();
        with(mine, None);
        agent.signal(Signal::SIGHUP);
        agent.wait_for_log("reloaded");
        again.blocking_send(()).unwrap();
    });
    // Rules alone cost no token.
    assert_eq!(host.issuer.control.request_count(), 3, "{}", agent.log());
    // Each denial is audited once, with who it was.
    let log = agent.log();
    assert!(log.contains("uid=2001"), "{log}");
}

#[test]
fn the_sockets_own_mode_is_the_first_wall_and_the_message_says_who_stands_before_it() {
    if !is_root("a socket of mode 0660") {
        return;
    }
    // Any group but root's; a host without this one has no other that is sure to be there.
    let Ok(Some(group)) = Group::from_name("daemon") else {
        // Past the test runner, which keeps what a passing test prints to itself.
        let _loud = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: this host has no group daemon\n"),
        );
        return;
    };
    let host = Host::new("s3cret");
    let rules = "allow = [\"uid:2001\", \"uid:2002\"]";
    host.config(&(host.agent_table("socket_group = \"daemon\"") + &host.profile("bloom", rules)));
    let agent: Agent = host.run();

    let stranger = host.cli_as(&User::new(2001, 2001, &[]), &["token", "bloom"]);
    assert_eq!(stranger.status.code(), Some(77), "{}", shown(&stranger));
    let text = String::from_utf8_lossy(&stranger.stderr).into_owned();
    for part in [
        "may not connect",
        "uid 2001",
        "groups 2001",
        "mode 0660",
        "owner 0 (root)",
        "(daemon)",
        "ask the operator",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(stranger.stdout.is_empty());

    for member in
        [User::new(2001, group.gid.as_raw(), &[]), User::new(2002, 2002, &[3001, group.gid.as_raw()])]
    {
        let output = host.cli_as(&member, &["token", "bloom"]);
        assert!(output.status.success(), "{member:?}: {}\n{}", shown(&output), agent.log());
    }
    // Inside, the second wall has its own words.
    let member = host.cli_as(&User::new(2003, 2003, &[group.gid.as_raw()]), &["token", "bloom"]);
    let text = String::from_utf8_lossy(&member.stderr).into_owned();
    assert_eq!(member.status.code(), Some(77), "{text}");
    for part in ["does not give you \"bloom\"", "uid 2003", "allow = [\"uid:2003\"] under [tokens.bloom]"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
