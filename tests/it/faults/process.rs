//! The same faults before the shipped program: what they leave behind in its process.
//!
//! Its clocks are the kernel's, so only faults that take no time are here; each is one attempt that an admin asks for.

use std::fs;

use bloom_agent::pb::{
    self, admin_service_client::AdminServiceClient, token_service_client::TokenServiceClient,
};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::{
    names::{Names, SERVER},
    pki,
    row::{Expect, Made, Section},
    rows,
    script::takes_time,
    server::{Plan, Server},
};
use crate::{
    host::{self, Host},
    leaks::canary::{Canary, Search},
    support::soon,
};

/// What the process may have more of after all of it than before, in kB: pages of the allocator, and no growth. The
/// buffers of one exchange are 64 kB and more.
const SLACK_KB: u64 = 16 * 1024;

/// Descriptors and threads of a process.
fn held(pid: Pid) -> (usize, Vec<String>) {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut names: Vec<_> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    names.sort_unstable();
    (names.len(), names)
}

/// The memory of a process that is its own, in kB (VmRSS of proc_pid_status(5)).
fn memory(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn faults_leave_no_descriptor_and_no_memory_behind_in_the_process() {
    host::on_this_thread(async {
        let (tick, _nobody_moves_the_clocks) = mpsc::unbounded_channel();
        let server = Server::start(&[SERVER], tick).await;
        let secrets = [Canary::secret("the first secret"), Canary::secret("the second secret")];
        let host = Host::new(&secrets[0].text);
        host.write("next", &secrets[1].text, 0o600);
        host.write("provider.pem", pki::ca_pem(), 0o644);
        let lines = format!(
            "token_url = 'https://{SERVER}:{}/token'\nca_file = {:?}\nclient_secret_next.file = {:?}",
            server.port(),
            host.path("provider.pem"),
            host.path("next"),
        );
        let profile: Vec<_> = host
            .profile("bloom", &lines)
            .lines()
            .filter(|line| !line.starts_with("token_url = \""))
            .map(str::to_owned)
            .collect();
        host.config(&format!("{}{}\n", host.agent_table(""), profile.join("\n")));
        let agent = host.run();
        let channel = host.channel().await;
        let mut tokens = TokenServiceClient::new(channel.clone());
        let mut admin = AdminServiceClient::new(channel);
        let get = pb::GetTokenRequest { name: "bloom".to_owned(), min_validity: None };
        let refresh = pb::RefreshTokenRequest { name: "bloom".to_owned() };
        tokens.get_token(get.clone()).await.unwrap();

        let cases: Vec<_> = Section::ALL
            .into_iter()
            .flat_map(rows)
            .filter_map(|row| match row.made {
                // One of each row: it is the way through the code that counts here.
                Made::Cases(cases) => cases.into_iter().next(),
                Made::Story { .. } | Made::Not(_) => None,
            })
            .filter(|case| case.fault.names == Names::Server && case.fault.black_holes.is_empty())
            .filter(|case| case.fault.moves.as_ref().is_some_and(|moves| !takes_time(moves)))
            // These would take the old token's place, and end the story.
            .filter(|case| matches!(case.expect, Expect::Failure(_)))
            .collect();
        assert!(cases.len() > 40, "{}", cases.len());
        let (mut before, mut told) = (None, Vec::new());
        // The first round is where the allocator, the log and the runtime take what they keep.
        for round in 0..2 {
            for case in &cases {
                server.set(Plan::Each(case.fault.moves.clone().unwrap()));
                let refreshed = soon(&case.what, admin.refresh_token(refresh.clone())).await;
                let status = refreshed.expect_err("a fault is no token");
                told.push(format!("{status:?}"));
                let list = tokens.list_tokens(pb::ListTokensRequest {}).await.unwrap().into_inner();
                assert_eq!(list.tokens[0].state(), pb::TokenState::Degraded, "{}", case.what);
                tokens.get_token(get.clone()).await.unwrap();
                soon("it hangs up", server.nobody_is_connected()).await;
            }
            server.set(Plan::good());
            admin.refresh_token(refresh.clone()).await.unwrap();
            soon("it hangs up", server.nobody_is_connected()).await;
            let now = (held(agent.pid()), memory(agent.pid()));
            if round == 0 {
                before = Some(now);
                continue;
            }
            let ((descriptors, names), kilobytes) = before.clone().unwrap();
            // What is watched while a profile is refused is closed a moment after it recovers.
            let mut tries = 0;
            let mut after = now.0;
            while after.0 > descriptors && tries < 1_000 {
                admin.get_status(pb::GetStatusRequest {}).await.unwrap();
                after = held(agent.pid());
                tries += 1;
            }
            assert!(after.0 <= descriptors, "before: {names:?}\nafter: {:?}", after.1);
            assert!(now.1 <= kilobytes + SLACK_KB, "{kilobytes} kB grew to {} kB", now.1);
        }
        let given: Vec<_> = server.minted().iter().map(|text| Canary::token("a token", text)).collect();
        let search = Search::new(host::CLIENT_ID, secrets.iter().chain(&given));
        let (status, _, log) = tokio::task::spawn_blocking(move || agent.stop()).await.unwrap();
        assert!(status.success() && !log.contains("panic"), "{status}: {log}");
        search.assert_none_in("stderr", &log);
        search.assert_none_in("what an admin was told", told.join("\n"));
    });
}
