# a good config is taken over once by a reload, a bad one not at all
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
type=notify
[[ $manager -lt 254 ]] || type=notify-reload
is "$type" "$(property Type)" "the unit's type"
generation=$(generation bloom)

secret_file partner "$first_secret"
configure "$(profile bloom)" "$(profile partner 'client_secret.file = "/srv/secrets/partner"')"
pid=$(main_pid)
systemctl reload bloom-agent.service
# With Type=notify the reload is not awaited.
within 5 logged reloaded
token partner >/dev/null
is "$generation" "$(generation bloom)" 'the generation of a profile that is as it was'
ends 77 as alice loans bloom-agent-cli token bloom

configure "$(profile bloom)" 'key_of_nobody = 1'
ends 78 bloom-agent-cli reload
has key_of_nobody "$err"
systemctl reload bloom-agent.service || [[ $manager -ge 254 ]] || die 'a reload without an answer failed'
not_reloaded_twice() { [[ $(journal | grep -c 'not reloaded') == 2 ]]; }
within 5 not_reloaded_twice
is "$generation" "$(generation bloom)" 'the generation after a bad reload'
token partner >/dev/null
is "$pid" "$(main_pid)" 'the process'
is active "$(property ActiveState)" 'the service'
is 1 "$(journal | grep -v 'not reloaded' | grep -c reloaded)" 'reloads that were done'
is 2 "$(issuer requests)" 'token requests'
