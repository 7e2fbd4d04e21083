# Completion of Docora's commands in zsh: made by `completion zsh`, to be sourced after compinit.

_docora_words() {
    local line
    local -a found
    for line in "${(@f)$(DOCORA_PROGRAM completion words -- "$@" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( $#found )); then
        _describe docora found
    else
        _files
    fi
}

_docora() {
    _docora_words "${(@)words[2,CURRENT]}"
}

# `python manage.py …`; any other use of python is completed as before.
_docora_python() {
    if [[ $words[2] == *manage.py ]] && (( CURRENT > 2 )); then
        _docora_words "${(@)words[3,CURRENT]}"
    elif (( $+functions[_python] )); then
        _python "$@"
    else
        _files
    fi
}

compdef _docora docora manage.py
compdef _docora_python python python3
