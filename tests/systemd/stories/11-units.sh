# a unit is who it is, by each way that this systemd has to tell it, and no trick makes another
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

# The way is forced on a build that can be: a host has the first of them that works.
ways=(cgroup bus-pidfd bus-pid)
[[ $manager -ge 254 ]] || ways=(cgroup bus-pid)
install /opt/bin/bloom-agent-forced /usr/bin/bloom-agent.forced

allowed() { ends 0 as alice loans bloom-agent-cli token bloom; }
refused() { ends 77 as alice other bloom-agent-cli token bloom; }

# A name in alice's own manager is hers to choose.
alice_home=$(getent passwd alice | cut -d : -f 6)
alice_manager() { runuser -u alice -- env XDG_RUNTIME_DIR="/run/user/$(id -u alice)" systemctl --user "$@"; }
loginctl enable-linger alice
within 10 alice_manager is-active basic.target
runuser -u alice -- mkdir -p "$alice_home/.config/systemd/user"
printf '%s\n' '[Service]' 'Type=oneshot' 'ExecStart=bloom-agent-cli token bloom' >"$alice_home/.config/systemd/user/loans.service"
alice_manager daemon-reload
own_unit() {
    ends 1 alice_manager start loans.service
    is 77 "$(alice_manager show --property=ExecMainStatus --value loans.service)" "how alice's own loans.service ended"
}

# Nobody but root moves a process into another unit; one that root moves is in the unit that it is in now.
moved() {
    local cgroups=/sys/fs/cgroup/system.slice pid
    as_daemon alice loans sh -c 'read -r _ </srv/told; bloom-agent-cli token bloom; echo "ended with $?"'
    as_daemon alice other sleep 60
    ends 2 as alice another sh -c "echo \$\$ >$cgroups/loans.service/cgroup.procs"
    has 'Permission denied' "$err"
    pid=$(systemctl show --property=MainPID --value loans.service)
    echo "$pid" >"$cgroups/other.service/cgroup.procs"
    echo now >/srv/told
    within 10 grep -q 'ended with 77' /srv/loans
    systemctl stop other.service
}

# A connection is its maker's, whoever it is handed to.
handed_over() {
    as_daemon bob other "$clients/tricks.py" take bloom /tmp/handed-over
    ends 0 as alice loans "$clients/tricks.py" give /tmp/handed-over
    is 'a token' "$(</srv/other)" 'what alice of loans gave to bob'
    as_daemon alice loans "$clients/tricks.py" take bloom /tmp/handed-over
    ends 0 as bob other "$clients/tricks.py" give /tmp/handed-over
    is 'no token' "$(</srv/loans)" 'what bob gave to alice of loans'
}

# A maker that is gone has no unit, also when its pid is that of a process in loans.service.
outlived() {
    local maker
    as_daemon alice other "$clients/tricks.py" outlive bloom /srv/told
    within 10 test -s /srv/other
    maker=$(</srv/other)
    as_daemon root loans "$clients/tricks.py" reuse "$maker"
    within 10 grep -q '/loans\.service$' "/proc/$maker/cgroup"
    echo now >/srv/told
    within 10 grep -q token /srv/other
    is 'no token' "$(tail -n 1 /srv/other)" "what was had by another's pid"
    systemctl stop loans.service
}

mkfifo --mode=0666 /srv/told
for way in "${ways[@]}"; do
    one_profile
    drop_in way "Environment=BLOOM_AGENT_FORCE_UNIT_LOOKUP=$way" 'ExecStart=' 'ExecStart=/usr/bin/bloom-agent.forced run'
    systemctl restart bloom-agent.service
    allowed
    refused
    has "$way" "$(bloom-agent-cli status)"
    own_unit
    moved
    handed_over
    outlived
done
rm /usr/bin/bloom-agent.forced /srv/told
loginctl disable-linger alice
