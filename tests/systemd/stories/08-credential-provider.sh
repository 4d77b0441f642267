# a unit that only has `cat` finds a token among its credentials; one that may not have it does not start
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

clean_slate
secret bloom "$first_secret"
configure "$(profile bloom 'allow = ["unit:loans.service"]')"
systemctl start bloom-agent.service
token=$(token bloom)
is 'root root 600' "$(stat -c '%U %G %a' /run/bloom-agent/credential.sock)" 'the socket of the credentials'

# with_credential UNIT NAME: what a unit finds under the name; carol is in no group.
with_credential() {
    systemd-run --quiet --wait --pipe --collect --unit="$1" --uid=carol --property=TimeoutStartSec=40s \
        --property="LoadCredential=$2:/run/bloom-agent/credential.sock" -- cat "\${CREDENTIALS_DIRECTORY}/$2"
}
ends 0 with_credential loans bloom
is "$token" "$out" 'the credential'

# A start that fails, not an empty file; and a name that no profile has is the same.
ends 243 with_credential other bloom
is '' "$out" 'what another unit found'
ends 243 with_credential loans nobody
is '' "$out" 'what was found under no name'
within 5 logged other.service

# While there is no token a start waits for it.
systemctl stop bloom-agent.service
[[ $manager -lt 254 ]] || systemctl clean --what=fdstore bloom-agent.service
issuer outage refuse
systemctl start bloom-agent.service
with_credential loans bloom >"$work/late" &
# The process of the manager that asks for credentials.
within 5 pgrep --exact '\(sd-mkdcreds\)'
issuer outage up
wait $! || die 'the unit did not wait for the token'
has bloom-dev. "$(<"$work/late")"
is 2 "$(issuer requests)" 'token requests'
