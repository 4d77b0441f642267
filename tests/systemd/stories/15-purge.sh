# a purge leaves nothing but the system user and the groups
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
rm -rf "$drop_ins"/story-*.conf "$secrets"
rmdir --ignore-fail-on-non-empty "$drop_ins"
systemctl daemon-reload
DEBIAN_FRONTEND=noninteractive dpkg --purge bloom-agent

# What the manager and the journal keep of a host that runs comes and goes.
find /etc /usr /var /run /lib -xdev | sort >"$work/after"
left=$(comm -13 /srv/files-before "$work/after" | grep -vE '^/(var/log|run/log|run/systemd|run/user|var/tmp/systemd-private-)' || true)
is '' "$left" 'files that are left'
is 'not-found' "$(property LoadState)" 'the unit'
id bloom-agent
getent group bloom-agent-users
