# from a bare host: the package, one profile, and a token for who may have it
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

DEBIAN_FRONTEND=noninteractive dpkg --install /srv/bloom-agent.deb
for user in alice bob; do usermod --append --groups bloom-agent-users "$user"; done
is active "$(systemctl is-active bloom-agent.socket)" 'the socket after the installation'
is enabled "$(systemctl is-enabled bloom-agent.socket)" 'the socket at boot'
one_profile

ends 0 as alice loans bloom-agent-cli token bloom
has bloom-dev. "$out"
first=$out
ends 0 as alice loans "$clients/get_token.py" bloom
is "$first" "$out" 'the token that Python got'

# Another user in that unit, and that user in another unit.
for caller in 'bob loans' 'alice other'; do
    # shellcheck disable=SC2086 # two words
    ends 77 as $caller bloom-agent-cli token bloom
    # shellcheck disable=SC2086
    ends 1 as $caller "$clients/get_token.py" bloom
    is 'PERMISSION_DENIED NOT_ALLOWED' "$err" "what $caller was told"
done

# Outside the callers' group nobody gets past the socket.
ends 77 as carol loans bloom-agent-cli token bloom
has bloom-agent-users "$err"
is 'root bloom-agent-users 660' "$(stat -c '%U %G %a' /run/bloom-agent/agent.sock)" 'the socket'

is 1 "$(issuer requests)" 'token requests'
