# the journal says who got what and how grave it is, and holds no token and no secret
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
ends 0 as alice loans bloom-agent-cli token bloom
ends 77 as bob other bloom-agent-cli token bloom
ends 78 bloom-agent-cli --socket /run/bloom-agent/agent.sock reload 
journalctl --unit=bloom-agent.service --output=json --all >"$work/journal"
python3 - "$work/journal" "$(id -u alice)" "$(id -u bob)" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
PYTHON

# Every story before has left its traces.
journalctl --all --output=export >"$work/everything"
for canary in canary bloom-dev.; do
    ends 1 grep --text --count --fixed-strings "$canary" "$work/everything"
done
# Nor is a token in any file.
ends 1 grep --recursive --devices=skip --files-with-matches --fixed-strings bloom-dev. /etc /var /run
