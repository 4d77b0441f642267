# a daemon that stands still is replaced by the watchdog, and its token is kept
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile
[[ $(property WatchdogUSec) == 1min ]] || die "WatchdogUSec is $(property WatchdogUSec)"
# A minute is what an operator wants; here it is the same, quicker.
drop_in watchdog WatchdogSec=2s
systemctl restart bloom-agent.service
generation=$(generation bloom)

pid=$(main_pid)
kill -STOP "$pid"
back() { [[ $(property ActiveState) == active && $(main_pid) != "$pid" ]]; }
within 20 back
logged 'Watchdog timeout' || die 'it was not the watchdog'
is "$generation" "$(generation bloom)" 'the generation'
is 1 "$(issuer requests)" 'token requests'

# One that is well stays: three times its period and the same process.
pid=$(main_pid)
beats() { [[ $(property WatchdogTimestampMonotonic) -gt $((beat + 6000000)) ]]; }
beat=$(property WatchdogTimestampMonotonic)
within 12 beats
is "$pid" "$(main_pid)" 'the process of a daemon that is well'
