# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_echo_load_global_optspecs
    string join \n mode= c/connections= s/size= depth= rate= d/duration= warmup= threads= source= no-verify timeout= tolerance= require-close interval= seed= json json-stream hdr= plot= no-progress h/help V/version
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

complete -c echo-load -n "__fish_echo_load_needs_command" -l mode -d 'What connections do' -r -f -a "ping-pong\t'Keep `--depth` messages in flight on each connection'
stream\t'The same with long messages: bulk'
churn\t'Connect, one echo, close, again'
idle\t'Hold the connections open and ping one now and then'"
complete -c echo-load -n "__fish_echo_load_needs_command" -s c -l connections -d 'Connections in all' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -s s -l size -d 'Bytes of a message: 64, 4KiB, 64..4KiB (evenly) or 64:90,16KiB:10 (weights) [default: 64; 64KiB for streams]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l depth -d 'Messages in flight per connection, at most [default: 1; 8 for streams]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l rate -d 'Open loop: send N messages per second in all, on schedule, however slow the answers [default: as fast as they come; 10 for idle connections]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -s d -l duration -d 'How long to measure' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l warmup -d 'How long to run before measuring' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l threads -d 'Threads, each with a ring and its share of the connections' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l source -d 'Connect from ADDRESS; repeatable: connections take turns (each has some 28,000 ports)' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l timeout -d 'How long a connect or an echo may take' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l tolerance -d 'Which share may be missing: of the messages those that were due and never sent, of the time what a connection waits for its first echo' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l interval -d 'Time between reports' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l seed -d 'What bytes and sizes are made from, to repeat a run [default: random]' -r -f
complete -c echo-load -n "__fish_echo_load_needs_command" -l hdr -d 'Write a histogram of latencies for each interval to FILE (HdrHistogram log, nanoseconds)' -r -F
complete -c echo-load -n "__fish_echo_load_needs_command" -l plot -d 'Draw latency by percentile and throughput over time to FILE' -r -F
complete -c echo-load -n "__fish_echo_load_needs_command" -l no-verify -d 'Do not compare the echoes with what was sent, only count bytes'
complete -c echo-load -n "__fish_echo_load_needs_command" -l require-close -d 'Make it an error if the server leaves connections open at the end'
complete -c echo-load -n "__fish_echo_load_needs_command" -l json -d 'Print the result as one JSON object instead of a table'
complete -c echo-load -n "__fish_echo_load_needs_command" -l json-stream -d 'Print a line of JSON for each interval, the result as the last'
complete -c echo-load -n "__fish_echo_load_needs_command" -l no-progress -d 'Show no progress, even on a terminal'
complete -c echo-load -n "__fish_echo_load_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c echo-load -n "__fish_echo_load_needs_command" -s V -l version -d 'Print version'
complete -c echo-load -n "__fish_echo_load_needs_command" -a "diff" -d 'Compare two results; the exit status is 4 if the second is worse'
complete -c echo-load -n "__fish_echo_load_using_subcommand diff" -l threshold -d 'How much worse a figure may be' -r -f
complete -c echo-load -n "__fish_echo_load_using_subcommand diff" -s h -l help -d 'Print help'
