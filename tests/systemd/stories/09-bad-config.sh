# a bad config fails the start with 78, says how to recover, and the recovery works
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
systemctl stop bloom-agent.service
configure 'key_of_nobody = 1' "$(profile bloom 'allow = ["user:alice"]')"

# Three clients at once: each is told, none hangs, and nothing is started for ever.
failed() { [[ $(property ActiveState) == failed ]]; }
clients_pids=()
for i in 1 2 3; do
    timeout 20 bloom-agent-cli token bloom >"$work/client-$i" 2>&1 </dev/null &
    clients_pids+=($!)
done
for pid in "${clients_pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    is 69 "$status" 'how a client ended'
done
# It turned them away itself, so that the socket listens on.
within 10 failed
is active "$(systemctl is-active bloom-agent.socket)" 'the socket'
is 78 "$(property ExecMainStatus)" "the daemon's exit"
within 5 logged 'systemctl reset-failed'
has key_of_nobody "$(journal)"

configure "$(profile bloom 'allow = ["user:alice"]')"
systemctl reset-failed bloom-agent.service bloom-agent.socket bloom-agent-credential.socket
systemctl start bloom-agent.socket bloom-agent.service
ends 0 as alice loans bloom-agent-cli token bloom
