# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_echo_load_global_optspecs
    string join \n mode= c/connections= s/size= depth= burst= dont-fragment rate= d/duration= warmup= threads= source= proxy-protocol= proxy-source= no-verify timeout= tolerance= require-close interval= seed= json json-stream hdr= plot= no-progress h/help V/version
end

function __fish_echo_load_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_echo_load_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_echo_load_using_subcommand
    set -l cmd (__fish_echo_load_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c echo-load -n "__fish_echo_load_needs_command" -l mode -d 'Traffic pattern of the connections' -r -f -a "ping-pong\t'Keep `--depth` messages in flight on each connection'
stream\t'Bulk transfer: as ping-pong, with long messages'
churn\t'Connect, one echo, close, repeat'
idle\t'Hold the connections open, with occasional messages'"
complete -c echo-load -n "__fish_echo_load_needs_command" -s c -l connections -d 'Total number of connections; of flows, each with a socket of its own, for datagrams' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -s s -l size -d 'Message size: 64, 4KiB, 64..4KiB (uniform) or 64:90,16KiB:10 (weighted); of datagrams from 0 to 65507 (IPv6, Unix: 65527) [default: 64; 64KiB for streams]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l depth -d 'Maximum number of messages in flight per connection [default: 1; 8 for streams; N with --burst N]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l burst -d 'UDP: send N datagrams of a flow by one system call, which the kernel or the network card divides (GSO) [default: 1]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l rate -d 'Open loop: send N messages per second in total, on a fixed schedule [default: closed loop; 10 for idle connections]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -s d -l duration -d 'Duration of the measurement' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l warmup -d 'Duration of the load before the measurement' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l threads -d 'Number of threads, each with a ring and its share of the connections' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l source -d 'Connect from ADDRESS; repeatable: used in turn (each address has some 28,000 ports)' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l proxy-protocol -d 'Begin each connection, or over UDP each datagram, with a PROXY header, as a proxy does; the header is not echoed' -r -f -a "v1\t'A line of text; not over UDP'
v2\t'Binary'"
complete -c echo-load -n "__fish_echo_load_needs_command" -l proxy-source -d 'Announce ADDRESS (IP or IP:PORT) in PROXY headers, or the addresses of a network (10.0.0.0/8) in turn [default: that of the connection]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l timeout -d 'Maximum time for a connect or an echo; a datagram without an echo by then is lost' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l tolerance -d 'Tolerated share of scheduled messages that were never sent, of the time that a connection waits for its first echo, and of datagrams that were lost, late or reordered' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l interval -d 'Time between reports' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l seed -d 'Seed for bytes and sizes, to repeat a run [default: random]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l hdr -d 'Write a histogram of latencies for each interval to FILE (HdrHistogram log, nanoseconds)' -r -F
complete -c echo-load -n "__fish_echo_load_needs_command" -l plot -d 'Draw latency by percentile and throughput over time to FILE' -r -F
complete -c echo-load -n "__fish_echo_load_needs_command" -l dont-fragment -d 'UDP: forbid fragmentation; a datagram that is larger than the path MTU is not sent'
complete -c echo-load -n "__fish_echo_load_needs_command" -l no-verify -d 'Count the bytes of the echoes without comparing them'
complete -c echo-load -n "__fish_echo_load_needs_command" -l require-close -d 'Treat connections that the server leaves open at the end as an error'
complete -c echo-load -n "__fish_echo_load_needs_command" -l json -d 'Print the result as one JSON object instead of a table'
complete -c echo-load -n "__fish_echo_load_needs_command" -l json-stream -d 'Print one line of JSON for each interval, and the result as the last'
complete -c echo-load -n "__fish_echo_load_needs_command" -l no-progress -d 'Do not show progress on a terminal'
complete -c echo-load -n "__fish_echo_load_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echo-load -n "__fish_echo_load_needs_command" -s V -l version -d 'Print version'
complete -c echo-load -n "__fish_echo_load_needs_command" -a "diff" -d 'Compare two results; the exit status is 4 if the second is worse'
complete -c echo-load -n "__fish_echo_load_using_subcommand diff" -l threshold -d 'Maximum change for the worse' -r -f
complete -c echo-load -n "__fish_echo_load_using_subcommand diff" -s h -l help -d 'Print help'
