//! The access matrix: uid × gid × supplementary groups × socket mode × rule × verb, each cell an answer of a shipped daemon to
//! a process of those ids, compared with an oracle that shares no code with the agent.
//!
//! `cargo test` takes one in 17 of the callers, so that each value of each dimension is met; all of them with
//! `BLOOM_AGENT_MATRIX=all cargo test --test it matrix:: -- --nocapture`.

mod oracle;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use nix::errno::Errno;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use self::oracle::{GROUPS, Line, Setting, Term::*, USERS, Who, may_administer, may_connect, may_use};
use crate::{
    connector::Connector,
    host::{Agent, Host, User, is_root, on_this_thread},
    support::{Client, Next as _, refusal},
};

const OWNER: u32 = 1234;
const NOBODY: u32 = 65_534;
const INVENTED: &str = "invented";
/// Refreshed by the admins all the time; the tokens of the others stay.
const REFRESHED: &str = "p02";

/// By number, the rules of the profiles p00, p01, …; none: the profile has no `allow`.
const RULES: [Option<&[Line]>; 24] = [
    None,
    Some(&[]),
    Some(&[&[Uid(2001)]]),
    Some(&[&[User("it-alice")]]),
    Some(&[&[User("it-alias")]]),
    Some(&[&[Gid(3001)]]),
    Some(&[&[Group("it-callers")]]),
    Some(&[&[Uid(2002), Gid(3001)]]),
    Some(&[&[User("it-bob"), Group("it-ops")]]),
    Some(&[&[Gid(3001), Gid(3002)]]),
    Some(&[&[Uid(2001), Gid(3001), Group("it-ops")]]),
    Some(&[&[Uid(2001), Uid(2002)]]),
    Some(&[&[Uid(2001)], &[Gid(3002)]]),
    Some(&[&[Uid(2003)], &[Uid(2002), Gid(3001)], &[Group("it-ops"), Gid(0)]]),
    Some(&[&[User("it-nobody-has-this")], &[Group("it-nobody-has-that")]]),
    Some(&[&[User("it-nobody-has-this"), Uid(2001)], &[Uid(2001), Group("it-nobody-has-that")]]),
    Some(&[&[Uid(0)]]),
    Some(&[&[User("root"), Gid(3001)]]),
    Some(&[&[Gid(0)]]),
    Some(&[&[Gid(NOBODY)]]),
    Some(&[&[Group("nogroup"), Uid(2001)], &[Uid(2003)]]),
    Some(&[&[Uid(OWNER)]]),
    Some(&[&[Gid(2001)], &[Group("it-admins")]]),
    Some(&[&[Uid(61_183)], &[Gid(3001), Uid(2003)]]),
];
const ADMIN: &[Line] = &[&[Uid(2006)], &[Gid(3004), Gid(3001)], &[User("it-bob"), Group("it-admins")]];

const SETTINGS: [Setting; 6] = [
    Setting { runs_as: 0, root_by_rule: false, socket_mode: 0o666, socket_gid: 0 },
    Setting { runs_as: 0, root_by_rule: true, socket_mode: 0o660, socket_gid: 3001 },
    Setting { runs_as: 0, root_by_rule: true, socket_mode: 0o666, socket_gid: 0 },
    Setting { runs_as: OWNER, root_by_rule: false, socket_mode: 0o660, socket_gid: OWNER },
    Setting { runs_as: OWNER, root_by_rule: true, socket_mode: 0o666, socket_gid: OWNER },
    Setting { runs_as: OWNER, root_by_rule: false, socket_mode: 0o600, socket_gid: OWNER },
];

const UIDS: [u32; 9] = [0, OWNER, 2001, 2002, 2003, 2006, 61_183, 61_184, NOBODY];
const GIDS: [u32; 7] = [0, 2001, 3001, 3002, 3009, OWNER, NOBODY];

/// Supplementary groups: none, one, some, 16, and more than the old limits of RPC (16) and of one look (1,023).
fn group_sets() -> Vec<Vec<u32>> {
    let others = |count: u32| (0..count).map(|n| 70_000 + n);
    vec![
        vec![],
        vec![3001],
        vec![3002],
        vec![3002, 3001],
        vec![3004],
        vec![0, OWNER],
        vec![2001, 2002, NOBODY],
        others(15).chain([3001]).collect(),
        others(1023).collect(),
        others(1024).chain([3001, 3002]).collect(),
    ]
}

/// All combinations, or one in 17: no dimension has a multiple of so many values, so each of them is met.
fn callers() -> Vec<Who> {
    let share = if std::env::var_os("BLOOM_AGENT_MATRIX").is_some() { 1 } else { 17 };
    let mut callers = Vec::new();
    for uid in UIDS {
        for groups in group_sets() {
            callers.extend(GIDS.map(|gid| Who { uid, gid, groups: groups.clone() }));
        }
    }
    callers.into_iter().step_by(share).collect()
}

fn name(number: usize) -> String {
    format!("p{number:02}")
}

/// An agent of that setting, on a host that has our users and groups and no other.
fn start(setting: &Setting) -> (Host, Agent) {
    let host = Host::new("s3cret");
    let mut passwd = String::new();
    for (user, uid, gid) in USERS {
        writeln!(passwd, "{user}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin").unwrap();
    }
    let mut group = String::new();
    for (name, gid, members) in GROUPS {
        writeln!(group, "{name}:x:{gid}:{members}").unwrap();
    }
    host.write("passwd", &passwd, 0o644);
    host.write("group", &group, 0o644);
    let quoted = |lines: &[Line]| {
        let lines: Vec<_> = lines.iter().map(|line| format!("{:?}", oracle::written(line))).collect();
        lines.join(", ")
    };
    let mut agent = format!("socket_mode = \"{:04o}\"\nadmin = [{}]\n", setting.socket_mode, quoted(ADMIN));
    agent += if setting.root_by_rule { "root = \"by-rule\"\n" } else { "" };
    if setting.runs_as == 0 {
        let (group, ..) = GROUPS.iter().find(|(_, gid, _)| *gid == setting.socket_gid).unwrap();
        writeln!(agent, "socket_group = {group:?}").unwrap();
    }
    let mut config = host.plain_agent_table(&agent);
    for (number, rules) in RULES.iter().enumerate() {
        let allow = rules.map(|lines| format!("allow = [{}]", quoted(lines))).unwrap_or_default();
        config += &host.profile(&name(number), &allow);
    }
    host.config(&config);

    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg("mount --bind \"$1\" /etc/passwd; mount --bind \"$2\" /etc/group; shift 2; exec \"$@\"");
    command.arg("sh").arg(host.path("passwd")).arg(host.path("group"));
    if setting.runs_as != 0 {
        host.give(".", setting.runs_as);
        host.give("secret", setting.runs_as);
        let ids = format!("--reuid={0} --regid={0} --clear-groups --", setting.runs_as);
        command.arg("setpriv").args(ids.split(' '));
    }
    command.arg(host.program("bloom-agent")).arg("run").arg("--config").arg(host.path("config.toml"));
    let agent = Agent::spawn(command);
    agent.wait_for_log("serving");
    (host, agent)
}

/// What is compared, counted by kind of mistake.
#[derive(Default)]
struct Tally {
    cells: usize,
    connects: usize,
    allowed: usize,
    false_allows: Vec<String>,
    false_denies: Vec<String>,
    otherwise_wrong: Vec<String>,
}

impl Tally {
    /// One cell: what the oracle says, and what the agent answered.
    fn compare(&mut self, cell: impl FnOnce() -> String, expected: &Answer, seen: &Answer) {
        self.cells += 1;
        self.allowed += usize::from(expected.admits());
        if expected == seen {
            return;
        }
        let told = format!("{}: {seen:?} instead of {expected:?}", cell());
        match (expected.admits(), seen.admits()) {
            (false, true) => self.false_allows.push(told),
            (true, false) => self.false_denies.push(told),
            _ => self.otherwise_wrong.push(told),
        }
    }
}

/// What a caller can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// What was asked for; of which profile, where the answer says it.
    Given(String),
    /// What cannot be told apart from a profile that is not there.
    Denied,
    /// Only for who may use every profile, or administer.
    Unknown,
    /// Several would do.
    Which(String),
    /// Nothing that is foreseen.
    Other(String),
}

impl Answer {
    fn admits(&self) -> bool {
        matches!(self, Self::Given(_) | Self::Which(_) | Self::Unknown)
    }

    fn of(answer: Result<String, Status>) -> Self {
        match answer {
            Ok(what) => Self::Given(what),
            Err(status) => match (refusal(&status), status.code()) {
                ((Code::PermissionDenied, reason, _), _) if reason == "NOT_ALLOWED" => Self::Denied,
                ((Code::NotFound, reason, _), _) if reason == "UNKNOWN_PROFILE" => Self::Unknown,
                ((Code::InvalidArgument, reason, _), _) if reason == "NAME_REQUIRED" => {
                    Self::Which(status.message().to_owned())
                }
                (_, code) => Self::Other(format!("{code:?} {}", status.message())),
            },
        }
    }
}

type Cells = BTreeMap<(&'static str, String), Answer>;
/// By profile: the one token that everybody must see.
type Tokens = Arc<Mutex<BTreeMap<String, String>>>;

/// What the contract says that somebody sees of an agent.
fn expected(setting: &Setting, who: &Who) -> Cells {
    let usable: Vec<String> =
        (0..RULES.len()).filter(|n| may_use(setting, RULES[*n], who)).map(name).collect();
    let all = usable.len() == RULES.len();
    let stranger = || if all { Answer::Unknown } else { Answer::Denied };
    let mut cells = Cells::new();
    for n in 0..RULES.len() {
        let name = name(n);
        let allowed = usable.contains(&name);
        let given = || if allowed { Answer::Given(name.clone()) } else { Answer::Denied };
        for verb in ["GetToken", "WatchToken", "ReportRejected"] {
            cells.insert((verb, name.clone()), given());
        }
        for verb in ["Check", "Watch"] {
            let healthy = || Answer::Given("Serving".to_owned());
            cells.insert((verb, name.clone()), if allowed { healthy() } else { Answer::Denied });
        }
        cells
            .insert(("ListTokens", name.clone()), if allowed { Answer::Given(name) } else { Answer::Denied });
    }
    cells.insert(("GetToken", INVENTED.to_owned()), stranger());
    let unnamed = match usable.as_slice() {
        [] => Answer::Denied,
        [only] => Answer::Given(only.clone()),
        _ => Answer::Which(usable.join(", ")),
    };
    cells.insert(("GetToken", String::new()), unnamed);
    let is_admin = may_administer(ADMIN, who);
    let admin = |answer: Answer| if is_admin { answer } else { Answer::Denied };
    cells.insert(("RefreshToken", REFRESHED.to_owned()), admin(Answer::Given(REFRESHED.to_owned())));
    cells.insert(("RefreshToken", INVENTED.to_owned()), admin(Answer::Unknown));
    for verb in ["Reload", "GetStatus", "GetMetrics"] {
        cells.insert((verb, String::new()), admin(Answer::Given(String::new())));
    }
    cells
}

/// Everything that one connection can do, all at once.
async fn seen(client: Client, tokens: Tokens) -> Cells {
    let mut tasks: JoinSet<Vec<((&'static str, String), Answer)>> = JoinSet::new();
    for n in 0..RULES.len() {
        let (client, name, tokens) = (client.clone(), name(n), Arc::clone(&tokens));
        tasks.spawn(async move {
            let got = client.get(&name).await.map(|token| the_token(&tokens, token));
            let watched = match client.watch(&name).await {
                Ok(mut stream) => stream.next_message().await.map(|message| message.unwrap().token.unwrap()),
                Err(status) => Err(status),
            };
            let watched = watched.map(|token| the_token(&tokens, token));
            // Of a token that never was: nothing is fetched for it.
            let reported = client.report(&name, 1).await.map(|answer| {
                assert!(answer.is_new);
                name.clone()
            });
            let checked = client.check(&name).await.map(|status| format!("{status:?}"));
            let mut health = client.watch_health(&name).await;
            let health =
                health.next_message().await.map(|message| format!("{:?}", message.unwrap().status()));
            let answers = [
                ("GetToken", got),
                ("WatchToken", watched),
                ("ReportRejected", reported),
                ("Check", checked),
                ("Watch", health),
            ];
            let cell = |(verb, answer)| {
                let answer = match Answer::of(answer) {
                    // Health has words of its own for a profile that the caller may not use.
                    Answer::Unknown if verb == "Check" => Answer::Denied,
                    Answer::Given(status) if verb == "Watch" && status == "ServiceUnknown" => Answer::Denied,
                    answer => answer,
                };
                ((verb, name.clone()), answer)
            };
            answers.map(cell).into()
        });
    }
    tasks.spawn(async move {
        let listed = client.list().await;
        let mut answers: Vec<_> = (0..RULES.len())
            .map(|n| {
                let name = name(n);
                let is_there = listed.iter().any(|token| token.name == name);
                (("ListTokens", name.clone()), if is_there { Answer::Given(name) } else { Answer::Denied })
            })
            .collect();
        let is_told = |name: &str| listed.iter().filter(|token| token.name == name).count() <= 1;
        assert!((0..RULES.len()).all(|n| is_told(&name(n))), "listed twice");
        assert!(listed.iter().all(|token| token.name.starts_with('p')), "{listed:?}");
        let invented = client.get(INVENTED).await.map(|token| token.name);
        answers.push((("GetToken", INVENTED.to_owned()), Answer::of(invented)));
        let unnamed = Answer::of(client.get("").await.map(|token| token.name));
        let unnamed = match unnamed {
            // The names, in their order, as the message lists them.
            Answer::Which(message) => {
                let words = message.split(|c: char| !c.is_ascii_alphanumeric());
                let is_ours =
                    |word: &&str| word.len() == 3 && word.starts_with('p') && word[1..].parse::<u8>().is_ok();
                Answer::Which(words.filter(is_ours).collect::<Vec<_>>().join(", "))
            }
            other => other,
        };
        answers.push((("GetToken", String::new()), unnamed));
        for name in [REFRESHED, INVENTED] {
            let done = client.refresh(name).await.map(|token| token.name);
            answers.push((("RefreshToken", name.to_owned()), Answer::of(done)));
        }
        let nothing = |_: ()| String::new();
        let reloaded = Answer::of(client.reload().await.map(drop).map(nothing));
        let status = client.status().await.map(|status| assert_eq!(status.profiles.len(), RULES.len()));
        let metrics = client.metrics().await.map(|text| assert!(text.ends_with("# EOF\n")));
        answers.push((("Reload", String::new()), reloaded));
        answers.push((("GetStatus", String::new()), Answer::of(status.map(nothing))));
        answers.push((("GetMetrics", String::new()), Answer::of(metrics.map(nothing))));
        answers
    });
    let mut cells = Cells::new();
    while let Some(answers) = tasks.join_next().await {
        cells.extend(answers.unwrap());
    }
    cells
}

/// The profile that a token is said to be of; it has to be the token that everybody else got of that profile.
fn the_token(tokens: &Tokens, token: bloom_agent::pb::Token) -> String {
    if token.name != REFRESHED {
        let mut tokens = tokens.lock().unwrap();
        let first = tokens.entry(token.name.clone()).or_insert_with(|| token.access_token.clone());
        assert!(*first == token.access_token, "another token of {}", token.name);
    }
    token.name
}

#[test]
fn nobody_gets_more_or_less_than_the_contract_says() {
    if !is_root("the access matrix") {
        return;
    }
    let agents: Vec<(Host, Agent)> = std::thread::scope(|scope| {
        let started: Vec<_> = SETTINGS.iter().map(|setting| scope.spawn(|| start(setting))).collect();
        started.into_iter().map(|agent| agent.join().unwrap()).collect()
    });
    let sockets: Vec<_> = agents.iter().map(|(host, _)| host.path("agent.sock")).collect();
    let sockets: Vec<&Path> = sockets.iter().map(std::path::PathBuf::as_path).collect();
    let tokens: Vec<Tokens> = SETTINGS.iter().map(|_| Tokens::default()).collect();
    let callers = callers();
    let mut tally = Tally::default();
    for who in &callers {
        for (number, socket) in sockets.iter().enumerate() {
            // One at a time: who says nothing for 5 s is closed.
            let process = Connector::of(&User::new(who.uid, who.gid, &who.groups), &[socket]);
            let stream = process.streams().next().unwrap();
            let setting = &SETTINGS[number];
            let about =
                || format!("{setting:?}, uid {} gid {} {} groups", who.uid, who.gid, who.groups.len());
            tally.connects += 1;
            let stream = match (may_connect(setting, who), stream) {
                (true, Ok(stream)) => stream,
                (false, Err(Errno::EACCES)) => continue,
                (false, Ok(_)) => {
                    tally.false_allows.push(format!("{}: connects", about()));
                    continue;
                }
                (_, Err(errno)) => {
                    tally.false_denies.push(format!("{}: cannot connect: {errno}", about()));
                    continue;
                }
            };
            let tokens = Arc::clone(&tokens[number]);
            let seen = on_this_thread(async { seen(Client::over(stream).await, tokens).await });
            let expected = expected(setting, who);
            assert!(expected.keys().eq(seen.keys()), "{:?}\n{:?}", expected.keys(), seen.keys());
            for (cell, expected) in &expected {
                let told = || format!("{}: {}({})", about(), cell.0, cell.1);
                tally.compare(told, expected, &seen[cell]);
            }
        }
    }
    for ((host, _), tokens) in agents.iter().zip(&tokens) {
        let tokens = tokens.lock().unwrap();
        let distinct: std::collections::BTreeSet<_> = tokens.values().collect();
        assert_eq!(distinct.len(), tokens.len(), "two profiles share a token");
        assert!(tokens.values().all(|token| host.issuer.control.is_live(token)));
    }
    let Tally { cells, connects, allowed, false_allows, false_denies, otherwise_wrong } = tally;
    // Past the test runner: these are the figures that are promised.
    let _loud = std::io::stderr().write_fmt(format_args!(
        "access matrix: {} callers, {connects} connects, {cells} cells ({allowed} to be admitted): {} false allows, {} false \
         denies, {} otherwise wrong\n",
        callers.len(),
        false_allows.len(),
        false_denies.len(),
        otherwise_wrong.len()
    ));
    let wrong: Vec<_> = false_allows.iter().chain(&false_denies).chain(&otherwise_wrong).take(50).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cells >= 10_000 && allowed >= cells / 20 && allowed <= cells * 19 / 20, "{cells} {allowed}");
    for (_, agent) in agents {
        let (status, _, log) = agent.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}
