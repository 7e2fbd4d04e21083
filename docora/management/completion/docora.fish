# Completion of Docora's commands in fish: made by `completion fish`, to be sourced.

function __docora_words
    set -l typed (commandline -opc) (commandline -ct)
    set -e typed[1]
    if string match -q '*manage.py' -- $typed[1]
        set -e typed[1]
    end
    DOCORA_PROGRAM completion words -- $typed 2>/dev/null
end

function __docora_is_manage
    set -l typed (commandline -opc)
    string match -q '*manage.py' -- $typed[2]
end

complete -c docora -f -a '(__docora_words)'
complete -c manage.py -f -a '(__docora_words)'
complete -c python -n __docora_is_manage -f -a '(__docora_words)'
complete -c python3 -n __docora_is_manage -f -a '(__docora_words)'
