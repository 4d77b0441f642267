# a provider that is down does not block a boot, unless a first token was asked for
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

clean_slate
issuer outage refuse
secret bloom "$first_secret"
configure "$(profile bloom)"
systemctl start bloom-agent.service
is active "$(property ActiveState)" 'the service without a provider'
within 5 status_says '0 of 1 tokens valid'
within 5 status_says bloom
issuer outage up
token bloom >/dev/null
within 5 status_says '1 of 1 tokens valid'

clean_slate
issuer outage refuse
secret bloom "$first_secret"
configure 'ready = "tokens"' "$(profile bloom)"
systemctl start --no-block bloom-agent.service
within 5 status_says '0 of 1 tokens valid'
is activating "$(property ActiveState)" 'the service that waits for a token'
issuer outage up
active() { [[ $(property ActiveState) == active ]]; }
within 20 active
is 1 "$(issuer granted)" 'tokens when it counts as started'
