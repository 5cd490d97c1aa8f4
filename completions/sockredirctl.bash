# bash completion for sockredirctl(8)                                        -*- shell-script -*-
# SPDX-License-Identifier: GPL-2.0-only

# Ports that TCP listeners have.
__sockredirctl_ports() {
    local address
    # 0A: listening; grep, as there may be thousands of others
    grep -hs ' 0A ' /proc/net/tcp /proc/net/tcp6 | while read -r _ address _; do
        echo $((16#${address##*:}))
    done
}

__sockredirctl_units() {
    systemctl list-units --all --plain --no-legend --no-pager \
        --type=service,scope,slice 2>/dev/null | sed 's/ .*//'
}

__sockredirctl_pids() {
    local directory
    for directory in /proc/[0-9]*; do
        echo "${directory#/proc/}"
    done
}

# Cgroups as /proc/PID/cgroup has them: paths below the cgroup2 mount.
__sockredirctl_cgroups() {
    local mount type= directory
    while read -r _ mount type _; do
        [[ $type == cgroup2 ]] && break
    done < /proc/self/mounts
    [[ $type == cgroup2 ]] || return
    for directory in "$mount$1"*/; do
        [[ -d $directory ]] || continue
        directory=${directory%/}
        echo "${directory#"$mount"}/"
    done
}

_sockredirctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    # bash splits --option=value into three words
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi

    local command= word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word != -* ]]; then
            command=$word
            break
        fi
    done
    local -a options
    case $command in
        '') options=(--help --version) ;;
        enable)
            options=(--configured --unit --cgroup --wait --no-block --exclude-unit --exclude-cgroup
                --addresses --port --exclude-port)
            ;;
        disable) options=(--force) ;;
        reload) ;;
        status | trace) options=(--json) ;;
        check) options=(--json --output --no-pager) ;;
        bench) options=(--port --json) ;;
        stats) options=(--format --json) ;;
        list) options=(--limit --sort --port --pid --unit --output --no-pager --json) ;;
        top) options=(--sort --interval --json) ;;
        explain) options=(--pid --port --unit --output --no-pager --json) ;;
        learned) options=(--forget --all --output --no-pager --json) ;;
        *) return ;;
    esac
    [[ -z $command ]] || options+=(--timeout --help)

    local -a words
    case $previous in
        --addresses) words=(loopback host any) ;;
        --cgroup | --exclude-cgroup)
            compopt -o nospace
            mapfile -t words < <(__sockredirctl_cgroups "$current")
            ;;
        --format) words=(text json openmetrics prometheus) ;;
        --output | -o) words=(short wide json) ;;
        --pid) mapfile -t words < <(__sockredirctl_pids) ;;
        --port | --exclude-port) mapfile -t words < <(__sockredirctl_ports) ;;
        --sort) words=(bytes messages rate message_rate unread age) ;;
        --unit | --exclude-unit) mapfile -t words < <(__sockredirctl_units) ;;
        --forget | --interval | --limit | --timeout) ;;
        *)
            words=("${options[@]}")
            if [[ -z $command && $current != -* ]]; then
                words=(enable disable reload status stats check bench list top trace explain learned)
            fi
            ;;
    esac
    COMPREPLY=()
    for word in "${words[@]}"; do
        # units may have a backslash in their names
        [[ $word != "$current"* ]] || COMPREPLY+=("$(printf %q "$word")")
    done
}

complete -F _sockredirctl sockredirctl
