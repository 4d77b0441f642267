# a unit is who it is, by each way that this systemd has to tell it, and no trick makes another
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

# The way is forced on a build that can be; what is shipped takes the first that works, and nobody's word for it.
ends 1 grep --quiet BLOOM_AGENT_FORCE_UNIT_LOOKUP /usr/bin/bloom-agent
ways=(cgroup bus-pidfd bus-pid)
[[ $manager -ge 254 ]] || ways=(cgroup bus-pid)
install /opt/bin/bloom-agent-forced /usr/bin/bloom-agent.forced

# A name in alice's own manager is hers to choose.
alice=(setpriv --reuid=alice --regid=alice --init-groups --)
alice_home=$(getent passwd alice | cut -d : -f 6)
alice_manager() { "${alice[@]}" env XDG_RUNTIME_DIR="/run/user/$(id -u alice)" systemctl --user "$@"; }
"${alice[@]}" mkdir -p "$alice_home/.config/systemd/user"
printf '%s\n' '[Service]' 'Type=oneshot' 'ExecStart=bloom-agent-cli token bloom' >"$alice_home/.config/systemd/user/loans.service"
systemctl start "user@$(id -u alice).service"
own_unit() {
    ends 1 alice_manager start loans.service
    is 77 "$(alice_manager show --property=ExecMainStatus --value loans.service)" "how alice's own loans.service ended"
}

# The service of that name or of that template, with the cgroups that it makes below its own; neither a scope nor a service
# in a slice that is none of `unit_slices`.
named() {
    local ask=(bloom-agent-cli token bloom) transient=(systemd-run --quiet --wait --pipe --collect --unit=loans)
    ends 0 as alice loans "${ask[@]}"
    ends 0 as alice loans@eu "${ask[@]}"
    # shellcheck disable=SC2016 # for the shell inside
    ends 0 "${transient[@]}" --property=Delegate=yes -- sh -c '
        own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/own.service
        mkdir "$own" && echo 0 >"$own/cgroup.procs" && exec "$@"' _ "${alice[@]}" "${ask[@]}"
    ends 77 as alice other "${ask[@]}"
    ends 77 as bob loans "${ask[@]}"
    ends 77 systemd-run --quiet --scope --collect --unit=loans --uid=alice -- "${ask[@]}"
    within 10 unknown loans.service
    ends 77 "${transient[@]}" --slice=apps.slice --uid=alice -- "${ask[@]}"
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

# Without a bus nobody is admitted whose unit only the bus can tell; and nobody is refused for good.
without_bus() {
    local status=0 degraded
    systemctl stop dbus.socket dbus.service
    systemctl start probe.service || status=$?
    degraded=$(bloom-agent-cli status)
    systemctl start dbus.socket dbus.service
    # It has lost its bus, and whoever asks it would wait.
    systemctl restart systemd-logind.service
    is 1 "$status" 'the start of a unit without a bus'
    has 'cannot find out which unit' "$(journalctl --quiet --after-cursor="$cursor" --unit=probe.service --output=cat)"
    has degraded "$degraded"
    within 10 systemctl start probe.service
}

printf '%s\n' '[Service]' 'Type=oneshot' 'User=alice' 'ExecStart=bloom-agent-cli token bloom' 'StandardOutput=null' 'StandardError=journal' \
    >/etc/systemd/system/probe.service
rm -f /srv/told
mkfifo --mode=0666 /srv/told
for way in "${ways[@]}"; do
    one_profile
    configure "$(profile bloom 'allow = ["user:alice & unit:loans.service", "user:alice & unit:loans@.service", "unit:probe.service"]')"
    drop_in way "Environment=BLOOM_AGENT_FORCE_UNIT_LOOKUP=$way" 'ExecStart=' 'ExecStart=/usr/bin/bloom-agent.forced run'
    systemctl restart bloom-agent.service
    named
    bloom-agent-cli status | grep --line-regexp "units *$way"
    own_unit
    moved
    handed_over
    outlived
    [[ $way == cgroup ]] || without_bus
done
rm /usr/bin/bloom-agent.forced /srv/told /etc/systemd/system/probe.service
systemctl stop "user@$(id -u alice).service"
