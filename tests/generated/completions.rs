//! Completions for bash, zsh and fish, as the package installs them.

use std::process::Command;

use clap::ValueHint;
use clap_complete::{Shell, generate};

use crate::{hold, programs};

/// What the shell looks for when it completes `program`.
fn file_name(shell: Shell, program: &str) -> String {
    match shell {
        Shell::Zsh => format!("_{program}"),
        Shell::Fish => format!("{program}.fish"),
        _ => program.to_owned(),
    }
}

/// The command line with every value that is no file called so: shells offer files for values of
/// which they know nothing.
fn with_hints(command: clap::Command) -> clap::Command {
    let hinted = command.mut_args(|argument| match argument.get_value_hint() {
        ValueHint::Unknown if argument.get_action().takes_values() => {
            argument.value_hint(ValueHint::Other)
        }
        _ => argument,
    });
    hinted.mut_subcommands(with_hints)
}

/// The script for `command`.
fn generated(shell: Shell, command: &clap::Command) -> String {
    let program = command.get_name().to_owned();
    // clap_complete 4.6.11 spells the name of a program with a hyphen in two ways in one bash
    // script, which then knows no subcommand; so there it is told another name.
    let name = if shell == Shell::Bash { program.replace('-', "_") } else { program.clone() };
    let mut text = Vec::new();
    generate(shell, &mut with_hints(command.clone()), &name, &mut text);
    let text = String::from_utf8(text).unwrap();
    // In fish an option that still lacks its value must not keep its values from being offered.
    text.replace(&format!(" {name}\n"), &format!(" {program}\n"))
        .replace("\n    or return\n", "\n    or return 0\n")
}

#[test]
fn completions_are_those_of_the_command_lines() {
    for (command, _) in programs() {
        let program = command.get_name();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let path = format!("packaging/completions/{shell}/{}", file_name(shell, program));
            hold(&path, &generated(shell, &command));
        }
    }
}

/// What bash offers at the end of `line`, in which the words are separated by blanks.
fn offered(program: &str, line: &str) -> Vec<String> {
    let script = r#"
        # That builtin works in an interactive shell alone.
        compopt() { :; }
        eval "$0"
        read -ra COMP_WORDS <<< "$1 "
        [[ $1 = *' ' ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        handler=$(complete -p "${COMP_WORDS[0]}" | sed 's/.* -F \([^ ]*\) .*/\1/')
        "$handler" "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let programs = programs();
    let (command, _) = programs.iter().find(|it| it.0.get_name() == program).unwrap();
    let made = generated(Shell::Bash, command);
    let output = Command::new("bash").arg("-c").arg(script).arg(made).arg(line).output().unwrap();
    assert!(output.stderr.is_empty(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes() {
    for (program, line, expected) in [
        ("echo-uring", "echo-uring --conf", &["--config"][..]),
        ("echo-uring", "echo-uring che", &["check"]),
        ("echo-uring", "echo-uring check --listen ", &[""]),
        (
            "echo-uring",
            "echo-uring check --log-level ",
            &["error", "warn", "info", "debug", "trace", "off"],
        ),
        ("echo-load", "echo-load --mode pi", &["ping-pong"]),
        ("echo-load", "echo-load diff --thr", &["--threshold"]),
    ] {
        assert_eq!(offered(program, line), expected, "{line}");
    }
}
