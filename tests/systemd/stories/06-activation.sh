# the first connection starts a stopped daemon, and is answered
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
generation=$(generation bloom)
systemctl stop bloom-agent.service
is inactive "$(property ActiveState)" 'the service after a stop'
is active "$(systemctl is-active bloom-agent.socket)" 'the socket after a stop'

ends 0 as alice loans "$clients/get_token.py" bloom
is active "$(property ActiveState)" 'the service after a connection'
# The descriptors outlive a stop from 254 on, by a setting that 252 does not know.
if [[ $manager -ge 254 ]]; then
    is "$generation" "$(generation bloom)" 'the generation after a stop'
    is 1 "$(issuer requests)" 'token requests'
else
    is 2 "$(issuer requests)" 'token requests'
fi

