# complete.bash FILE WORD...: prints what FILE completes the last word to, one a line.
. "$1"
shift
compopt() { :; } # works while somebody types only
COMP_WORDS=(sockredirctl "$@")
COMP_CWORD=$#
_sockredirctl
[[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
