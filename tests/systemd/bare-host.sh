# What a host has before the agent comes: callers, an issuer of tokens, a journal that outlives a reboot.
# shellcheck shell=bash
set -euo pipefail
export LC_ALL=C

# alice and bob may connect, carol may not: the group is the package's, and must not be needed to exist before.
groupadd --system bloom-agent-users
for user in alice bob carol; do useradd --create-home "$user"; done
for user in alice bob; do usermod --append --groups bloom-agent-users "$user"; done

mkdir -p /srv/secrets /var/log/journal
journalctl --flush
# The host's own key, which encrypts credentials.
systemd-creds setup 2>/dev/null

cat >/etc/systemd/system/issuer.service <<'UNIT'
[Unit]
Description=The issuer of tokens for the tests
Before=bloom-agent.service
# Every story starts it anew.
StartLimitIntervalSec=0
[Service]
Type=notify
ExecStart=/opt/bin/issuer serve /srv/issuer 8443
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet --now issuer.service

# For the story of the purge.
find /etc /usr /var /run /lib -xdev | sort >/srv/files-before
