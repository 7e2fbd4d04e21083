# Completion of Docora's commands in bash: made by `completion bash`, to be sourced.

_docora_words() {
    local word
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("$word")
    done < <(DOCORA_PROGRAM completion words -- "$@" 2>/dev/null)
}

_docora() {
    _docora_words "${COMP_WORDS[@]:1:COMP_CWORD}"
}

# `python manage.py …`; any other use of python gets names of files, as before.
_docora_python() {
    COMPREPLY=()
    if [[ ${COMP_WORDS[1]} == *manage.py && COMP_CWORD -gt 1 ]]; then
        _docora_words "${COMP_WORDS[@]:2:COMP_CWORD-1}"
    fi
}

complete -o bashdefault -o default -F _docora docora manage.py
complete -o bashdefault -o default -F _docora_python python python3
