#!/bin/bash
# Rules by `unit:` on a real systemd, in a sandbox as tight as the shipped one, in each way that the host has.
#
#   tests/systemd/units.sh bookworm "cgroup bus-pid"
#   tests/systemd/units.sh trixie "cgroup bus-pidfd bus-pid"
#
# It wants the programs of `cargo build --features force-unit-lookup` in $PROGRAMS (default target/debug). The profile's
# provider cannot be reached: a caller who is admitted hears "no token right now" (75), any other "not allowed" (77).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
export SYSTEMD_HOST_SUITE=${1:-bookworm} SYSTEMD_HOST_NAME=${SYSTEMD_HOST_NAME:-units-${1:-bookworm}}
ways=${2:-cgroup bus-pid}
programs=${PROGRAMS:-$here/../../target/debug}
host() { "$here/../systemd-host" "$@"; }
failed=0
expect() { # WANTED WHAT COMMAND...
  local wanted=$1 what=$2 status=0
  shift 2
  "$@" >/tmp/units.$$ 2>&1 || status=$?
  if [[ $status == "$wanted" ]]; then
    echo "ok    $way: $what"
  else
    echo "WRONG $way: $what: exit $status, not $wanted"; cat /tmp/units.$$; failed=1
  fi
}

host up
host exec mkdir -p /etc/agent
trap 'host down; rm -f /tmp/units.$$' EXIT
host push "$programs/bloom-agent" /usr/local/bin/bloom-agent
host push "$programs/bloom-agent-cli" /usr/local/bin/bloom-agent-cli
# A store of certificates is wanted; nothing is ever checked against it.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=nobody \
  -keyout /dev/null -out /tmp/units.$$ 2>/dev/null
chmod 644 /tmp/units.$$
host push /tmp/units.$$ /etc/agent/ca.pem
host exec sh -c '
useradd -r agentd; useradd -m alice; useradd -m bob
cat > /etc/agent/config.toml <<X
[agent]
socket = "/run/agent/agent.sock"
socket_mode = "0666"
[tokens.p]
provider = "oauth2"
token_url = "https://127.0.0.1:9/token"
client_id = "c"
client_secret.file = "/etc/agent/secret"
ca_file = "/etc/agent/ca.pem"
allow = ["user:alice & unit:loans.service", "user:alice & unit:tmpl@.service", "unit:probe.service"]
X
cat > /etc/systemd/system/agent.service <<X
[Service]
ExecStart=/usr/local/bin/bloom-agent run --config /etc/agent/config.toml
ExecReload=/bin/kill -HUP \$MAINPID
EnvironmentFile=/etc/agent/way
User=agentd
UMask=0077
RuntimeDirectory=agent
RuntimeDirectoryMode=0755
LimitCORE=0
CapabilityBoundingSet=
NoNewPrivileges=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateTmp=yes
PrivateMounts=yes
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
X
cat > /etc/systemd/system/probe.service <<X
[Service]
Type=oneshot
User=alice
ExecStart=/usr/local/bin/bloom-agent-cli --socket /run/agent/agent.sock token p
StandardError=truncate:/tmp/probe.err
X
mkdir -p /home/alice/.config/systemd/user
sed "/^User=/d; /^StandardError/d" /etc/systemd/system/probe.service > /home/alice/.config/systemd/user/loans.service
cat > /tmp/moved <<X
#!/bin/sh
# Tells its id, waits until it has been moved, and asks.
echo \$\$ > /tmp/moved.pid
while ! [ -e /tmp/moved.go ]; do sleep 0.05; done
exec /usr/local/bin/bloom-agent-cli --socket /run/agent/agent.sock token p
X
chmod 755 /tmp/moved
systemctl daemon-reload
systemctl start "user@$(id -u alice).service"
'
alice=$(host exec id -u alice)
cli=(/usr/local/bin/bloom-agent-cli --socket /run/agent/agent.sock)
settled() { host exec timeout 20 sh -c 'until /usr/local/bin/bloom-agent-cli --socket /run/agent/agent.sock status >/dev/null 2>&1; do sleep 0.05; done'; }

for way in $ways; do
  host exec sh -c "echo BLOOM_AGENT_FORCE_UNIT_LOOKUP=$way > /etc/agent/way; systemctl restart agent"
  settled
  expect 75 "an allowed user in an allowed unit" host run --unit=loans --uid=alice -- "${cli[@]}" token p
  expect 75 "an instance of an allowed template" host run --unit=tmpl@eu --uid=alice -- "${cli[@]}" token p
  expect 75 "the same unit started again" host run --unit=loans --uid=alice -- "${cli[@]}" token p
  expect 75 "a child in a cgroup of its own below the unit" host run --unit=loans -p Delegate=yes -- sh -c '
    c=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/own.service; mkdir "$c"; echo $$ > "$c/cgroup.procs"
    exec setpriv --reuid alice --clear-groups '"${cli[*]}"' token p'
  expect 77 "the same user in another unit" host run --unit=other --uid=alice -- "${cli[@]}" token p
  expect 77 "another user in an allowed unit" host run --unit=loans --uid=bob -- "${cli[@]}" token p
  expect 77 "a scope of that name" host exec systemd-run --quiet --scope --unit=loans --uid=alice "${cli[@]}" token p
  expect 77 "an allowed unit in a slice that is none of ours" \
    host run --unit=loans --slice=apps.slice --uid=alice -- "${cli[@]}" token p
  expect 77 "the user's own loans.service in the user's own manager" \
    host exec setpriv --reuid alice --regid alice --clear-groups sh -c "export XDG_RUNTIME_DIR=/run/user/$alice
    systemctl --user start loans 2>/dev/null; exit \$(systemctl --user show -P ExecMainStatus loans)"
  expect 0 "root moves a process of another unit in before it connects" host exec sh -c '
    rm -f /tmp/moved.*; systemctl reset-failed moving 2>/dev/null
    systemd-run --quiet --unit=loans --collect sleep 60
    systemd-run --quiet --unit=moving --uid=alice -p RemainAfterExit=no /tmp/moved
    until [ -s /tmp/moved.pid ]; do sleep 0.05; done
    cat /tmp/moved.pid > /sys/fs/cgroup/system.slice/loans.service/cgroup.procs
    touch /tmp/moved.go
    while [ "$(systemctl show -P ActiveState moving)" = active ]; do sleep 0.05; done
    systemctl stop loans; [ "$(systemctl show -P ExecMainStatus moving)" = 75 ]; s=$?; systemctl reset-failed moving; exit $s'
  expect 0 "status names the way" host exec sh -c "${cli[*]} status | grep -qx 'units       $way'"
  expect 0 "the log names it once" \
    host exec sh -c "sleep 0.2; [ \$(journalctl -u agent --since=-60s | grep -cw 'looked up way=$way') = 1 ]"
  host exec sh -c "sed -i '/^socket_mode/a unit_slices = [\"apps.slice\"]' /etc/agent/config.toml; systemctl reload agent"
  host exec sh -c "until journalctl -u agent | tail -n 3 | grep -q reloaded; do sleep 0.05; done"
  expect 75 "after a reload that names its slice" \
    host run --unit=loans --slice=apps.slice --uid=alice -- "${cli[@]}" token p
  expect 77 "and no longer the other" host run --unit=loans --uid=alice -- "${cli[@]}" token p
  host exec sh -c "sed -i '/^unit_slices/d' /etc/agent/config.toml"
  if [[ $way != cgroup ]]; then
    host exec sh -c 'systemctl restart agent'
    settled
    host exec systemctl stop dbus.socket dbus.service
    host exec sh -c 'systemctl start probe 2>/dev/null || :'
    expect 0 "without a bus nobody is admitted by unit, and is told to come again" \
      host exec grep -q 'cannot find out which unit' /tmp/probe.err
    expect 0 "which status tells" host exec sh -c "${cli[*]} status | grep -q '^degraded.*units of callers'"
    host exec sh -c 'systemctl start dbus.socket dbus.service; systemctl reset-failed probe'
    expect 75 "and is admitted when the bus is back" host run --unit=loans --uid=alice -- "${cli[@]}" token p
  fi
done
exit $failed
