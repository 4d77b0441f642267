# a reboot: it comes back by itself, and fetches each token once
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

# It has a reboot in the middle: the first part is run as `before`.
if [[ ${1:-} == before ]]; then
    one_profile
    exit
fi
active() { [[ $(property ActiveState) == active ]]; }
within 20 active
within 20 status_says '1 of 1 tokens valid'
is 1 "$(issuer requests)" 'token requests since the boot'
ends 0 as alice loans bloom-agent-cli token bloom
is 1 "$(issuer requests)" 'token requests since the boot'
