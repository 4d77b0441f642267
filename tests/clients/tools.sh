# The foreign programs that the client tests need: pinned, and kept outside the tree from run to run.
# Sourced by the scripts beside it and by .ci/run.
# shellcheck shell=bash

# A failure inside $(…) is a failure.
shopt -s inherit_errexit

clients=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$clients/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/bloom-agent-ci
mkdir -p "$cache"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# debian COMMAND-OR-PATH PACKAGE...: installs the packages if the command or path is missing.
debian() {
    local wanted=$1
    shift
    if command -v "$wanted" >/dev/null || [[ -e $wanted ]]; then return; fi
    [[ $EUID == 0 ]] || die "$wanted is missing." "It comes with Debian's packages: $*." "Install them, or run this as root."
    say "installing $*"
    {
        [[ -e $cache/apt-updated ]] && apt-get install -qq -y --no-install-recommends "$@" || {
            apt-get update -qq
            touch "$cache/apt-updated"
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
        }
    } >"$cache/apt.log" 2>&1 </dev/null || {
        tail -n 20 "$cache/apt.log" >&2
        die "apt-get could not install: $*"
    }
}

# node_modules DIR: prints where the packages of DIR/package-lock.json are installed.
node_modules() {
    local from=$1 to
    debian node nodejs npm
    debian npm npm
    to=$cache/node-$(sha256sum <"$from/package-lock.json" | cut -c 1-16)
    if [[ ! -e $to/complete ]]; then
        rm -rf "$to"
        mkdir -p "$to"
        cp "$from/package.json" "$from/package-lock.json" "$to"
        npm ci --prefix "$to" --ignore-scripts --no-audit --no-fund --loglevel=error >"$to/npm.log" 2>&1 </dev/null || {
            tail -n 20 "$to/npm.log" >&2
            die "npm could not install the packages of ${from#"$repository/"}"
        }
        touch "$to/complete"
    fi
    printf '%s\n' "$to/node_modules"
}

# python_with DIR: prints the Python that has the packages of DIR/requirements.txt.
python_with() {
    local from=$1 to
    debian python3 python3 python3-venv
    to=$cache/python-$(sha256sum <"$from/requirements.txt" | cut -c 1-16)
    if [[ ! -e $to/complete ]]; then
        rm -rf "$to"
        # Debian's python3 alone has no ensurepip.
        python3 -c 'import ensurepip' 2>/dev/null || debian python3-venv python3-venv
        python3 -m venv "$to"
        "$to/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$from/requirements.txt" \
            >"$to/pip.log" 2>&1 </dev/null || {
            tail -n 20 "$to/pip.log" >&2
            die "pip could not install the packages of ${from#"$repository/"}"
        }
        touch "$to/complete"
    fi
    printf '%s\n' "$to/bin/python"
}

# buf_program: prints the path of buf.
buf_program() {
    local modules
    modules=$(node_modules "$clients/buf")
    # One package per processor; npm installs the one that fits.
    ls "$modules"/@bufbuild/buf-linux-*/bin/buf
}
