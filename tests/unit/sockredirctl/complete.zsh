# complete.zsh FILE WORD...: prints what FILE completes the last word to, one a line.
#
# Completion works while somebody types only: so a second zsh on a terminal of its own, in which a
# Tab runs the real machinery, with its last step replaced by one that prints the matches.
if [[ $1 == --inside ]]; then
    fpath=($2 $fpath)
    PROMPT=
    autoload -Uz compinit && compinit -D -u
    bindkey '^I' complete-word
    zstyle ':completion:*' list-separator ''
    compadd() {
        # these fill arrays for whoever asks; the matches are added afterwards
        if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
            builtin compadd "$@"
            return
        fi
        local -a found
        builtin compadd -O found "$@"
        (( $#found )) && print -rl -- match:$^found
        builtin compadd "$@"
    }
    over() { print -r -- over:; exit }
    comppostfuncs=(over)
    print -r -- ready:
    return
fi

zmodload zsh/zpty
script=${0:A}
file=$1
shift
zpty inner zsh -f -i
zpty -w inner ". ${(q)script} --inside ${(q)file:A:h}"
while zpty -r inner line && [[ $line != ready:* ]]; do :; done
zpty -n -w inner "sockredirctl $*"$'\t'
while zpty -r inner line && [[ $line != over:* ]]; do
    if [[ $line == *match:* ]]; then print -r -- ${${line#*match:}%%$'\r'*}; fi
done
