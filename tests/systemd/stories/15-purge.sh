# a purge leaves nothing but the system user and the groups
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
rm -rf "$drop_ins"/story-*.conf "$secrets"
rmdir --ignore-fail-on-non-empty "$drop_ins"
systemctl daemon-reload
DEBIAN_FRONTEND=noninteractive dpkg --purge bloom-agent

# Logs, dpkg's own books and the databases of users are the host's.
find /etc /usr /var /run /lib -xdev | sort >"$work/after"
left=$(comm -13 /srv/files-before "$work/after" | grep -vE \
    -e '^/var/(log|lib/dpkg|lib/systemd|cache)/' -e '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$' \
    -e '^/run/(systemd|user|log|utmp|udev|credentials|lock)' || true)
is '' "$left" 'files that are left'
is 'not-found' "$(property LoadState)" 'the unit'
id bloom-agent
getent group bloom-agent-users
