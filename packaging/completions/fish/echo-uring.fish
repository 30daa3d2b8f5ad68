# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_echo_uring_global_optspecs
    string join \n config= listen= metrics= status= log-level= h/help V/version
end

function __fish_echo_uring_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_echo_uring_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_echo_uring_using_subcommand
    set -l cmd (__fish_echo_uring_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c echo-uring -n "__fish_echo_uring_needs_command" -l config -d 'Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it exists]' -r -F
complete -c echo-uring -n "__fish_echo_uring_needs_command" -l listen -d 'Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777, udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name); repeatable' -r -f
complete -c echo-uring -n "__fish_echo_uring_needs_command" -l metrics -d 'Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path' -r -f
complete -c echo-uring -n "__fish_echo_uring_needs_command" -l status -d 'Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"' -r -F
complete -c echo-uring -n "__fish_echo_uring_needs_command" -l log-level -d 'Log messages of severity LEVEL and more severe, regardless of the configured level' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c echo-uring -n "__fish_echo_uring_needs_command" -s h -l help -d 'Print help'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -s V -l version -d 'Print version'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -f -a "serve" -d 'Run the service (the default)'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -f -a "check" -d 'Validate the configuration, print it with all defaults as TOML, and exit'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -f -a "reload" -d 'Make the service reload its configuration (for ExecReload= of its unit)'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -f -a "status" -d 'Show connections, traffic and errors of a running daemon, per listener and worker'
complete -c echo-uring -n "__fish_echo_uring_needs_command" -f -a "doctor" -d 'Examine kernel, limits, sockets, sandbox and configuration; the exit status is 1 if there is a problem'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -l config -d 'Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it exists]' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -l listen -d 'Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777, udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name); repeatable' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -l metrics -d 'Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -l status -d 'Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -l log-level -d 'Log messages of severity LEVEL and more severe, regardless of the configured level' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c echo-uring -n "__fish_echo_uring_using_subcommand serve" -s h -l help -d 'Print help'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l config -d 'Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it exists]' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l listen -d 'Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777, udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name); repeatable' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l metrics -d 'Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l status -d 'Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l log-level -d 'Log messages of severity LEVEL and more severe, regardless of the configured level' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -l json -d 'Print errors, warnings and the configuration as one JSON object'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand check" -s h -l help -d 'Print help'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -l config -d 'Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it exists]' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -l listen -d 'Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777, udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name); repeatable' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -l metrics -d 'Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -l status -d 'Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -l log-level -d 'Log messages of severity LEVEL and more severe, regardless of the configured level' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c echo-uring -n "__fish_echo_uring_using_subcommand reload" -s h -l help -d 'Print help'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand status" -l socket -d 'Query the Unix socket PATH' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand status" -l instance -d 'Query the instance echo-uring@NAME' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand status" -l json -d 'Print the answer unchanged as JSON'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand status" -l watch -d 'Repeat every second until interrupted'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand status" -s h -l help -d 'Print help'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l config -d 'Read the configuration from FILE and FILE.d/*.toml [default: /etc/echo-uring.toml if it exists]' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l listen -d 'Listen on ADDRESS instead of the configured listeners: 127.0.0.1:7777, [::1]:7777, udp:127.0.0.1:7777, unix:/path, unix-seqpacket:/path or unix-datagram:/path (or :@name); repeatable' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l metrics -d 'Serve metrics and health over HTTP at ADDRESS as well: 127.0.0.1:17007 or unix:/path' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l status -d 'Serve the status at the Unix socket PATH as well, for "echo-uring status --socket PATH"' -r -F
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l log-level -d 'Log messages of severity LEVEL and more severe, regardless of the configured level' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l instance -d 'Examine the instance echo-uring@NAME' -r -f
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -l json -d 'Print the findings as one JSON object'
complete -c echo-uring -n "__fish_echo_uring_using_subcommand doctor" -s h -l help -d 'Print help'
