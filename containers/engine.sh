#!/usr/bin/env bash
# A container engine on a Debian host that has none, and the base images where no image registry answers.
#
# Called by `make engine`, as root. Safe to run again: what is already there is left alone. On other systems install
# Docker as its makers say; this script then only makes sure that the base image is there.
set -euo pipefail

readonly SUITES=(${RELEASES:-forky trixie bookworm})
readonly LOG=/var/log/slurmbus-dockerd.log
readonly START_DEADLINE=60 # seconds until dockerd must answer; a cold start takes about two
readonly PULL_DEADLINE=45  # seconds for a base image from a registry (50 MB)

say() { printf 'engine: %s\n' "$*"; }

fail() {
    printf 'engine: error: %s\n' "$1" >&2
    shift
    for hint in "$@"; do printf 'engine:   %s\n' "$hint" >&2; done
    exit 1
}

engine_answers() { command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

require_debian_root() {
    local purpose=$1
    grep -qsE '^ID(_LIKE)?=.*debian' /etc/os-release ||
        fail "this is not a Debian system; can't $purpose" \
            "install Docker yourself (docs.docker.com/engine/install), start it, and run this again"
    [[ $EUID -eq 0 ]] ||
        fail "must be root to $purpose" \
            "run: sudo make engine" \
            "if an engine is running and only you may not use it: sudo usermod -aG docker $(id -un), then log in again"
}

# Installs the Debian packages (first of each pair) whose program (second) is missing.
install_packages() {
    local missing=()
    while (($#)); do
        command -v "$2" >/dev/null || [[ " ${missing[*]} " == *" $1 "* ]] || missing+=("$1")
        shift 2
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    apt-get update -q -o Acquire::Check-Valid-Until=false >/dev/null ||
        fail "apt-get update failed" "check this host's package sources and its way to the network"
    # The client is a package of its own since Debian 13; before, it is part of docker.io.
    if [[ " ${missing[*]} " == *" docker.io "* && -n $(apt-cache search --names-only '^docker-cli$') ]]; then
        missing+=(docker-cli)
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install ${missing[*]}" "run it by hand to see why: apt-get install ${missing[*]}"
}

has_systemd() { [[ -d /run/systemd/system ]]; }

dockerd_runs() { [[ $(cat "/proc/$(cat /var/run/docker.pid 2>/dev/null)/comm" 2>/dev/null) == dockerd ]]; }

start_engine() {
    local started=
    if has_systemd; then
        say "starting docker.service"
        systemctl start docker || fail "docker.service doesn't start" "see: journalctl -u docker"
    elif ! dockerd_runs; then
        say "starting dockerd, log in $LOG"
        setsid dockerd </dev/null >>"$LOG" 2>&1 &
        started=$!
    fi
    local deadline=$((SECONDS + START_DEADLINE))
    until engine_answers; do
        if ((SECONDS >= deadline)) || { [[ -n $started ]] && ! kill -0 "$started" 2>/dev/null; }; then
            [[ -z $started ]] || tail -n 20 "$LOG" >&2
            fail "dockerd doesn't answer" "its log is $LOG, or with systemd: journalctl -u docker" \
                "it needs a kernel with overlayfs, bridges and iptables, and the right to use them"
        fi
        sleep 0.2
    done
}

have_base_image() { docker image inspect "debian:$1" >/dev/null 2>&1; }

# A registry that didn't answer once isn't asked again.
registry=unknown
pull_base_image() {
    [[ $registry != silent ]] || return 1
    say "pulling debian:$1 (at most $PULL_DEADLINE s)"
    timeout "$PULL_DEADLINE" docker pull -q "debian:$1" >/dev/null 2>&1 || { registry=silent && return 1; }
}

# The same files that the registry's image is made of: the suite's essential packages and apt.
make_base_image() {
    require_debian_root "make debian:$1 from Debian's packages"
    install_packages mmdebstrap mmdebstrap
    say "no registry answers: making debian:$1 with mmdebstrap"
    local work
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name is fixed now, the function's variable is gone at exit
    trap "rm -rf '$work'" EXIT
    # A mirror's Release file can be past its date; its signature is checked all the same.
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' "$1" "$work/base.tar" ||
        fail "mmdebstrap failed" "check this host's way to a Debian mirror"
    docker import "$work/base.tar" "debian:$1" >/dev/null
    rm -rf "$work"
}

if engine_answers; then
    say "docker $(docker version --format '{{.Server.Version}}') answers"
else
    require_debian_root "install and start a container engine"
    install_packages docker.io dockerd docker.io docker iptables iptables
    start_engine
    say "docker $(docker version --format '{{.Server.Version}}') answers"
fi

for suite in "${SUITES[@]}"; do
    if have_base_image "$suite"; then
        say "debian:$suite is there"
    elif pull_base_image "$suite"; then
        say "debian:$suite pulled"
    else
        make_base_image "$suite"
        say "debian:$suite made"
    fi
done
say "ready"
