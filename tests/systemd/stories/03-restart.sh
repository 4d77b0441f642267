# restart, crash and upgrade cost no token request; 20 restarts under load fail no call
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
configure "$(profile bloom 'allow = ["user:alice"]')"
systemctl restart bloom-agent.service
generation=$(generation bloom)

same_token() {
    is "$generation" "$(generation bloom)" "the generation after $1"
    is 1 "$(issuer requests)" "token requests after $1"
}
other_process() { [[ $(property ActiveState) == active && $(main_pid) != "$pid" ]]; }

pid=$(main_pid)
systemctl restart bloom-agent.service
other_process || die 'the restart left the process as it was'
same_token 'a restart'

pid=$(main_pid)
kill -KILL "$pid"
within 10 other_process
same_token 'a crash'

pid=$(main_pid)
DEBIAN_FRONTEND=noninteractive dpkg --install /srv/bloom-agent.deb
within 10 other_process
same_token 'an upgrade'

# Two programs of callers, a watcher by the CLI, which shows no generation twice, and one in Python.
as_daemon alice calls-1 "$clients/load.py" bloom
as_daemon alice calls-2 "$clients/load.py" bloom
as_daemon alice watch-cli bloom-agent-cli watch bloom
as_daemon alice watch-python "$clients/watch.py" bloom
connected() { [[ $(grep -c connected /srv/watch-python) -gt $1 ]]; }
for ((restarts = 0; restarts < 20; restarts++)); do
    within 10 connected "$restarts"
    systemctl reset-failed bloom-agent.service
    systemctl restart bloom-agent.service
done
within 10 connected 20
for unit in calls-1 calls-2; do
    systemctl stop $unit.service
    python3 - "$generation" /srv/$unit <<'PYTHON'
import json, sys
done = json.load(open(sys.argv[2]))
assert done["failed"] == 0, done
assert done["generations"] == [int(sys.argv[1])], done
assert done["calls"] > 200 and done["retried"] > 0, done
print(sys.argv[2], done)
PYTHON
done
same_token '20 restarts'
is 1 "$(wc -l </srv/watch-cli)" 'lines of the CLI that watches'

# They are still there for the next token.
bloom-agent-cli refresh bloom
two_generations() { [[ $(wc -l </srv/watch-cli) == 2 && $(grep -vc connected /srv/watch-python) == 2 ]]; }
within 10 two_generations
systemctl stop watch-cli.service watch-python.service
