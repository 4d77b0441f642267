# The words that the stories are written in. A story runs inside the host, as root, and stops at what is not as it says.
# shellcheck shell=bash
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C

# The issuer's one client, and the secret that it accepts at first. No secret and no token may ever be in the journal:
# secrets have `canary` in them, tokens begin with `bloom-dev.`.
client=host-client
first_secret=canary-of-the-first-secret

config=/etc/bloom-agent/config.toml
secrets=/etc/bloom-agent/secrets
drop_ins=/etc/systemd/system/bloom-agent.service.d
manager=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
# shellcheck disable=SC2034 # the stories do
clients=/opt/tests/python
work=$(mktemp -d)
cursor=$(journalctl --quiet --lines=0 --show-cursor | sed -n 's/^-- cursor: //p')
trap 'rm -rf "$work"' EXIT

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# within SECONDS COMMAND...: waits until the command succeeds.
within() {
    local seconds=$1 end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || die "not within $seconds s: $*" "StatusText: $(status_text)"
        sleep 0.05
    done
}

# ends STATUS COMMAND...: the command ends with this status; what it wrote is in $out and $err.
ends() {
    local wanted=$1 status=0
    shift
    "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
    out=$(<"$work/out")
    err=$(<"$work/err")
    [[ $status == "$wanted" ]] || die "ended with $status and not with $wanted: $*" "$out" "$err"
}

# has TEXT WHOLE: the text is in the whole.
has() { [[ $2 == *"$1"* ]] || die "no '$1' in:" "$2"; }

# is WANTED FOUND WHAT: they are the same.
is() { [[ $1 == "$2" ]] || die "$3: '$2' and not '$1'"; }

issuer() { /opt/bin/issuer tell /srv/issuer "$@"; }

# A name is free again when the manager has forgotten the unit that had it.
unknown() { [[ $(systemctl show --property=LoadState --value "$1") == not-found ]]; }

# as USER UNIT COMMAND...: runs it as the user in a unit of that name.
as() {
    local user=$1 unit=$2
    shift 2
    within 10 unknown "$unit.service"
    systemd-run --quiet --wait --pipe --collect --unit="$unit" --uid="$user" --setenv=PYTHONPATH=/opt/python -- "$@"
}

# as_daemon USER UNIT COMMAND...: the same in the background; what it prints is in /srv/UNIT until the next one.
as_daemon() {
    local user=$1 unit=$2
    shift 2
    within 10 unknown "$unit.service"
    : >"/srv/$unit"
    systemd-run --quiet --collect --unit="$unit" --uid="$user" --setenv=PYTHONPATH=/opt/python \
        --property="StandardOutput=append:/srv/$unit" --property=StandardError=journal --property=SuccessExitStatus=SIGTERM -- "$@"
}

# profile NAME LINES...: the config's table of a profile at the issuer, its secret a credential of the same name.
profile() {
    printf '[tokens.%s]\nprovider = "oauth2"\ntoken_url = "%s"\nclient_id = "%s"\n' "$1" "$(</srv/issuer/url)" "$client"
    [[ "${*:2}" == *client_secret.* ]] || printf 'client_secret.credential = "%s"\n' "$1"
    printf '%s\n' "${@:2}"
}

# configure LINES...: the config; the lines go on from its [agent] table.
configure() {
    printf '%s\n' '[agent]' 'ca_file = "/srv/issuer/ca.pem"' "$@" >"$config.new"
    chown root:bloom-agent "$config.new"
    chmod 0640 "$config.new"
    mv "$config.new" "$config"
}

# drop_in NAME LINES...: settings of the service.
drop_in() {
    mkdir -p "$drop_ins"
    printf '%s\n' '[Service]' "${@:2}" >"$drop_ins/story-$1.conf"
    systemctl daemon-reload
}

# secret NAME VALUE: a secret that is root's, and the credential by which the agent has it.
secret() {
    (umask 077 && mkdir -p "$secrets" && printf '%s' "$2" >"$secrets/$1")
    drop_in "$1" "LoadCredential=$1:$secrets/$1"
}

# secret_file NAME VALUE: a secret in a file of the agent's own.
secret_file() {
    (umask 077 && printf '%s' "$2" >"/srv/secrets/$1")
    chown bloom-agent:bloom-agent "/srv/secrets/$1"
}

status_text() { systemctl show --property=StatusText --value bloom-agent.service; }
status_says() { [[ $(status_text) == *"$1"* ]]; }
property() { systemctl show --property="$1" --value bloom-agent.service; }
main_pid() { property MainPID; }

# What the agent, and the manager about it, have logged since the story began.
journal() { journalctl --quiet --after-cursor="$cursor" --unit=bloom-agent.service --output=cat; }
logged() { [[ $(journal) == *"$1"* ]]; }

token() { bloom-agent-cli token "$1" --wait; }
# generation NAME: of the token that is served.
generation() {
    local json
    json=$(bloom-agent-cli token "$1" --wait --format json)
    python3 -c 'import json, sys; print(json.load(sys.stdin)["generation"])' <<<"$json"
}

# The state that every story begins with: a package just installed, an issuer just started, no profile.
clean_slate() {
    local units=(bloom-agent.{socket,service} bloom-agent-credential.socket)
    systemctl stop "${units[@]}"
    rm -f "$drop_ins"/story-*.conf "${secrets:?}"/* /srv/secrets/*
    systemctl daemon-reload
    # From 254 on the descriptors may outlive a stop; then they are to be forgotten by name.
    [[ $manager -lt 254 ]] || systemctl clean --what=fdstore bloom-agent.service 2>/dev/null || true
    systemctl reset-failed "${units[@]}" 2>/dev/null || true
    systemctl restart issuer.service
    configure
    systemctl start bloom-agent.socket bloom-agent-credential.socket
}

# The usual one: the profile bloom, for alice in loans.service.
one_profile() {
    clean_slate
    secret bloom "$first_secret"
    configure "$(profile bloom 'allow = ["user:alice & unit:loans.service"]')"
    systemctl start bloom-agent.service
    token bloom >/dev/null
}
