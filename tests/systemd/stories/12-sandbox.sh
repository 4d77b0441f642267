# the service has no privilege, and the manager keeps sealed memfds for it and nothing else
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

clean_slate
secret bloom "$first_secret"
secret other "$first_secret"
configure "$(profile bloom)" "$(profile other)"
systemctl start bloom-agent.service
for name in bloom other; do token $name >/dev/null; done

# What is written in the units, as this systemd judges it; then the process as it is.
bash /opt/tests/units-hold
status=$(<"/proc/$(main_pid)/status")
for line in $'CapEff:\t0000000000000000' $'CapPrm:\t0000000000000000' $'CapBnd:\t0000000000000000' \
    $'CapAmb:\t0000000000000000' $'NoNewPrivs:\t1' $'Seccomp:\t2' "Uid:	$(id -u bloom-agent)"; do
    has "$line" "$status"
done

# The wall that the process has raised for itself, of which the manager's own filters leave it every part.
logged 'the process has confined itself confinement="Landlock ABI' || die 'no wall:' "$(journal)"
status=$(bloom-agent-cli status)
has 'confined    Landlock ABI' "$status"
has ', TCP to 53 8443; seccomp' "$status"
[[ $status != *degraded* ]] || die 'something is missing:' "$status"

# Rotations replace what is stored. The manager's descriptors are looked at as they are, in PID 1.
for name in bloom other bloom bloom other; do bloom-agent-cli refresh $name; done
settled() { [[ $(property NFileDescriptorStore) == 2 ]]; }
within 5 settled
python3 - <<'PYTHON'
import fcntl, os

found = 0
for number in os.listdir("/proc/1/fd"):
    try:
        name = os.readlink(f"/proc/1/fd/{number}")
    except FileNotFoundError:
        continue
    if name.startswith("/memfd:") and "bloom" in name:
        found += 1
        with open(f"/proc/1/fd/{number}", "rb") as file:
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
            assert seals & 0xF == 0xF, (name, seals)
            assert b"bloom-dev." in file.read(), name
assert found == 2, found
PYTHON
[[ $manager -lt 254 ]] || has token.bloom. "$(systemd-analyze fdstore bloom-agent.service)"
