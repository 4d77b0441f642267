# the journal says who got what and how grave it is, and holds no token and no secret
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
ends 0 as alice loans bloom-agent-cli token bloom
ends 77 as alice other bloom-agent-cli token bloom
chmod 0600 "$config"
ends 78 bloom-agent-cli reload
journalctl --after-cursor="$cursor" --unit=bloom-agent.service --output=json --all >"$work/journal"
python3 - "$work/journal" "$(id -u alice)" <<'PYTHON'
import json, sys

entries = [json.loads(line) for line in open(sys.argv[1])]
ours = [entry for entry in entries if entry.get("SYSLOG_IDENTIFIER") == "bloom-agent"]
assert ours and all(entry["PRIORITY"] in "3467" for entry in ours), ours


def audit(decision):
    found = [entry for entry in ours if (entry.get("BLOOM_DECISION"), entry.get("BLOOM_UID")) == (decision, sys.argv[2])]
    assert len(found) == 1, (decision, found)
    assert "MESSAGE_ID" in found[0] and found[0]["PRIORITY"] == "6", found
    print(found[0]["MESSAGE"])
    return found[0]


granted = audit("granted")
wanted = {"PROFILE": "bloom", "UNIT": "loans.service", "VERB": "get", "RULE": "user:alice & unit:loans.service"}
for name, value in wanted.items():
    assert granted[f"BLOOM_{name}"] == value, granted
assert granted["BLOOM_GENERATION"].isdigit() and "BLOOM_PID" in granted, granted
denied = audit("denied")
assert denied["BLOOM_UNIT"] == "other.service" and "BLOOM_GENERATION" not in denied, denied
assert any(entry["PRIORITY"] == "3" and "not reloaded" in entry["MESSAGE"] for entry in ours), ours
PYTHON

# Every story before has left its traces.
journalctl --all --output=export >"$work/everything"
for canary in canary bloom-dev.; do
    ends 1 grep --text --count --fixed-strings "$canary" "$work/everything"
done
# Nor is a token in any file.
ends 1 grep --recursive --devices=skip --files-with-matches --fixed-strings bloom-dev. /etc /var /run
